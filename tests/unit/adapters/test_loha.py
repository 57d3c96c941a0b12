"""LoHa: a Hadamard product that runs as a chain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.inject import attach
from adapters.registry import make_spec
from tests.tolerances import FP64, relative_error


def moved(layer: nn.Linear | nn.Conv2d, **knobs: object) -> Adapter:
    torch.manual_seed(0)
    spec = make_spec("loha", **{"rank": 3, "alpha": 6.0, **knobs})
    adapter = attach({"unet": nn.Sequential(layer.double())}, spec, {"unet": "0"}).adapters["unet.0"]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


@pytest.mark.parametrize("layer", [nn.Linear(10, 12), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2)], ids=str)
def test_the_delta_is_the_product_of_two_low_rank_matrices_entry_by_entry(layer: nn.Linear | nn.Conv2d):
    adapter = moved(layer)
    f = adapter.state_dict()
    expected = 2 * (f["w1_a"] @ f["w1_b"]) * (f["w2_a"] @ f["w2_b"])
    assert relative_error(adapter.delta_weight(layer.weight).flatten(1), expected) < FP64


@pytest.mark.parametrize("groups", [1, 2])
def test_with_cores_each_matrix_is_a_tucker_product(groups: int):
    layer = nn.Conv2d(4, 6, (3, 2), groups=groups)
    adapter = moved(layer, tucker=True)
    f = adapter.state_dict()

    def rebuilt(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.einsum("pqkl,po,qi->oikl", core, up, down)

    expected = 2 * rebuilt(f["t1"], f["w1_a"], f["w1_b"]) * rebuilt(f["t2"], f["w2_a"], f["w2_b"])
    assert relative_error(adapter.delta_weight(layer.weight), expected) < FP64


def test_a_rank_of_r_reaches_matrices_of_rank_r_squared():
    layer = nn.Linear(20, 20)
    assert torch.linalg.matrix_rank(moved(layer).delta_weight(layer.weight)) == 9
