"""SoRA's own promises: gates fall to exactly 0 by proximal steps, and the file is the smaller for it."""

from __future__ import annotations

import pytest
import torch

from adapters.adapter_set import AdapterSet
from adapters.files import AdapterCard, attach_file, load_adapter, save_adapter
from adapters.methods.sora import Sora
from tests.contract.harness import LAYERS, Base, Method, nudge, train
from tests.tolerances import FP32, FP64, relative_error

SORA = Method("sora", {"rank": 8, "gate_learning_rate": 0.5, "sparsity": 0.4}, lambda _: 0)


def sora(adapter_set: AdapterSet) -> Sora:
    inner = adapter_set.adapters["unet.layer"]
    found = getattr(inner, "inner", inner)
    assert isinstance(found, Sora)
    return found


def close(adapter_set: AdapterSet, gates: list[int]) -> None:
    with torch.no_grad():
        sora(adapter_set).gate[gates] = 0


def test_a_step_minimises_the_proximal_objective():
    """prox(h) = argmin_g ½(g − h)² + ηλ|g|, found on a grid."""
    adapter_set = Base(LAYERS["linear"], torch.float64).attach(SORA)
    adapter = sora(adapter_set)
    start = torch.linspace(-1, 1, 8).double()
    gradient = torch.tensor([0.1, -0.3, 0.5, 0.2, -0.1, 0.4, -0.6, 0.05]).double()
    with torch.no_grad():
        adapter.gate.copy_(start)
    adapter.gate.grad = gradient
    adapter_set.on_step(1)
    h = start - 0.5 * gradient
    grid = torch.linspace(-2, 2, 40_001).double()
    objective = 0.5 * (grid[:, None] - h) ** 2 + 0.2 * grid[:, None].abs()
    assert (adapter.gate - grid[objective.argmin(0)]).abs().max() < 1e-4
    assert (adapter.gate == 0).tolist() == [False] * 4 + [True] + [False] * 3


def test_gates_without_a_gradient_fall_to_exactly_0():
    adapter_set = Base(LAYERS["linear"], torch.float32).attach(SORA)
    adapter = sora(adapter_set)
    for step in range(1, 7):
        adapter.gate.grad = torch.zeros(8)
        adapter_set.on_step(step)
    assert torch.equal(adapter.gate, torch.zeros(8))


def test_the_optimizer_is_not_given_the_gates():
    adapter_set = Base(LAYERS["linear"], torch.float32).attach(SORA)
    trained = {id(p) for group in adapter_set.parameter_groups() for p in group.parameters}
    assert {name for name, p in adapter_set.named_parameters() if id(p) not in trained} == {"unet.layer.gate"}


def test_a_step_that_overflowed_leaves_the_gates_finite_and_in_place():
    adapter_set = Base(LAYERS["linear"], torch.float32).attach(SORA)
    adapter = sora(adapter_set)
    adapter.gate.grad = torch.full((8,), torch.inf)
    adapter_set.on_step(1)
    assert torch.equal(adapter.gate, torch.ones(8))


def test_the_delta_is_b_diag_g_a():
    base = Base(LAYERS["linear"], torch.float64)
    adapter_set = base.attach(SORA, alpha=12.0)
    nudge(adapter_set)
    adapter = sora(adapter_set)
    dense = 1.5 * adapter.up @ torch.diag(adapter.gate) @ adapter.down
    assert relative_error(adapter.delta_weight(base.layer.weight), dense) < FP64


@pytest.mark.parametrize("magnitude", [False, True], ids=["plain", "magnitude"])
@pytest.mark.parametrize("layer", ["linear", "conv 3x3"])
@pytest.mark.parametrize("gates", [[0, 3, 4], list(range(8))], ids=["some", "all"])
def test_a_pruned_file_is_smaller_and_gives_the_same_output(layer: str, magnitude: bool, gates: list[int], tmp_path):
    base = Base(LAYERS[layer], torch.float32)
    adapter_set = base.attach(SORA, magnitude=magnitude)
    nudge(adapter_set)
    save_adapter(tmp_path / "whole.safetensors", adapter_set, AdapterCard())
    close(adapter_set, gates)
    before = base()
    save_adapter(tmp_path / "pruned.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    prefix = "unet.layer.inner." if magnitude else "unet.layer."
    tensors = load_adapter(tmp_path / "pruned.safetensors").tensors
    assert tensors[prefix + "down"].shape[0] == tensors[prefix + "up"].shape[1] == 8 - len(gates)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "pruned")]
    row_and_column = base.layer.weight[0].numel() + base.layer.weight.shape[0]
    assert sizes[0] - sizes[1] > 4 * len(gates) * row_and_column - 100
    attach_file({"unet": base}, tmp_path / "pruned.safetensors")
    assert relative_error(base(), before) < FP32


def test_a_grouped_convolution_keeps_its_closed_ranks_in_the_file(tmp_path):
    base = Base(LAYERS["conv grouped"], torch.float32)
    adapter_set = base.attach(SORA)
    nudge(adapter_set)
    close(adapter_set, [1])
    before = base()
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    attach_file({"unet": base}, tmp_path / "a.safetensors")
    assert torch.equal(base(), before)


def test_training_closes_some_gates_and_not_others():
    base = Base(LAYERS["linear"], torch.float32)
    adapter_set = base.attach(SORA, gate_learning_rate=0.5, sparsity=0.2)
    train(base, adapter_set, steps=60)
    closed = (sora(adapter_set).gate == 0).sum()
    assert 0 < closed < 8
