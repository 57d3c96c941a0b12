"""docs/write-your-own-adapter.md: its code is a method that keeps the contract."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapters.base import REGISTRY
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.inject import base_hash
from tests.contract import test_contract as contract
from tests.contract.harness import LAYERS, Base, Layer, Method, nudge, train
from tests.tolerances import FP32, relative_error, same_bits

PAGE = Path(__file__).parents[3] / "docs" / "write-your-own-adapter.md"
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def method(blocks: list[str], tmp_path: Path) -> Iterator[Method]:
    """The page's class, registered as long as the test runs, and its row of the table."""
    before = set(REGISTRY)
    path = tmp_path / "reflection.py"
    path.write_text(blocks[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("reflection_of_the_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert set(REGISTRY) - before == {"reflection"}
        yield eval(blocks[1], {"Method": Method})
    finally:
        del sys.modules[spec.name]
        for name in set(REGISTRY) - before:
            del REGISTRY[name]


def test_the_page_has_a_file_of_at_most_forty_lines_of_code_and_a_row(blocks: list[str]):
    assert len(blocks) == 2
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 40


@every_layer
def test_it_trains_saves_loads_and_merges(method: Method, layer: Layer, tmp_path: Path):
    base = Base(layer, torch.float32)
    before, digest = base(), base_hash({"unet": base})
    adapter = base.attach(method)
    assert same_bits(base(), before)
    train(base, adapter, steps=60)
    trained = base()
    assert trained.square().mean() < 0.99 * before.square().mean()
    save_adapter(tmp_path / "a.safetensors", adapter, AdapterCard())
    adapter.merge()
    assert relative_error(base(), trained) < 10 * FP32
    adapter.detach()
    assert base_hash({"unet": base}) == digest
    attach_file({"unet": base}, tmp_path / "a.safetensors")
    assert same_bits(base(), trained)


@every_layer
def test_it_keeps_the_contract(method: Method, layer: Layer):
    for dtype in (torch.float32, torch.bfloat16):
        contract.test_at_the_start_the_output_is_the_bases_bit_for_bit(method, layer, dtype)
        contract.test_attaching_training_and_detaching_leave_no_trace_in_the_base(method, layer, dtype)
        contract.test_every_trainable_gets_a_gradient_within_two_steps(method, layer, dtype)
    assert Base(layer, torch.float32).attach(method).num_parameters() == method.parameters(contract_site(layer, method))


def contract_site(layer: Layer, method: Method):
    (adapter,) = Base(layer, torch.float32).attach(method).adapters.values()
    return adapter.site


def test_it_is_what_the_page_says(method: Method):
    """At β = 2 the weight is the base's mirror image across û."""
    base = Base(LAYERS["linear"], torch.float64)
    adapter = base.attach(method)
    nudge(adapter)
    (layer,) = adapter.adapters.values()
    with torch.no_grad():
        layer.get_parameter("beta").fill_(2)
    weight = base.layer.weight.detach()
    axis = layer.get_parameter("axis").detach()
    mirror = torch.eye(len(weight)) - 2 * axis.mT @ axis / axis.square().sum()
    moved = weight + layer.delta_weight(weight).detach()
    assert relative_error(moved, mirror.double() @ weight) < 1e-6
    assert relative_error(torch.linalg.svdvals(moved), torch.linalg.svdvals(weight)) < 1e-12
