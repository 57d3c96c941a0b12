"""Bat: its inverse, its rank, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import config
from torch import Tensor, nn

from adapters.base import Context
from adapters.errors import UserInputError
from adapters.inject import attach
from adapters.methods.bat import Bat, BatSpec
from adapters.registry import make_spec
from adapters.sites import Site, make_site
from tests.tolerances import FP32, FP64, relative_error


def build(layer: nn.Linear | nn.Conv2d, rank: int = 4) -> tuple[Bat, Site]:
    torch.manual_seed(0)
    site = make_site("unet.a", layer.double())
    assert site is not None
    bat = Bat(site, site.weight.detach(), BatSpec(rank=rank), Context(0, (site,)))
    nn.init.normal_(bat.blocks, std=0.2)
    return bat, site


def blocks_of(matrix: Tensor) -> dict[tuple[int, int], Tensor]:
    return {
        (a, b): matrix[4 * a : 4 * a + 4, 4 * b : 4 * b + 4]
        for a in range(matrix.shape[0] // 4)
        for b in range(matrix.shape[1] // 4)
    }


LAYERS = [nn.Linear(24, 12), nn.Conv2d(8, 12, 3), nn.Conv2d(8, 12, 3, groups=2)]


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_each_block_is_moved_by_its_product_with_d_and_by_d(layer: nn.Linear | nn.Conv2d):
    bat, site = build(layer)
    before = blocks_of(site.matricise(site.weight))
    after = blocks_of(site.matricise(bat.delta_weight(site.weight)))
    for (a, b), block in after.items():
        assert relative_error(block, before[a, b] @ bat.blocks[a] + bat.blocks[a]) < FP64


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_base_comes_back_by_the_inverse_of_i_plus_d(layer: nn.Linear | nn.Conv2d):
    bat, site = build(layer)
    before = blocks_of(site.matricise(site.weight))
    merged = blocks_of(site.matricise(site.weight + bat.delta_weight(site.weight)))
    for (a, b), block in merged.items():
        restored = (block - bat.blocks[a]) @ torch.linalg.inv(torch.eye(4).double() + bat.blocks[a])
        assert relative_error(restored, before[a, b]) < FP64


@torch.no_grad()
def test_the_delta_has_full_rank():
    bat, site = build(nn.Linear(24, 12))
    assert torch.linalg.matrix_rank(bat.delta_weight(site.weight)) == 12


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_no_tensor_as_large_as_the_weight_is_kept_for_backward(layer: nn.Linear | nn.Conv2d):
    bat, site = build(layer)
    saved: list[Tensor] = []
    x = torch.randn((2, 8, 5, 5) if site.kind == "conv" else (2, 24)).double().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = bat.delta(x, site.module(x).detach())
    own = site.weight.data_ptr()
    assert [t.shape for t in saved if t.numel() >= site.weight.numel() and t.data_ptr() != own] == []
    gradients = torch.autograd.grad(found.square().sum(), [x, bat.blocks])
    weight = bat.delta_weight(site.weight.detach())
    dense = site.apply_down(x, site.matricise(weight))
    expected = torch.autograd.grad(dense.square().sum(), [x, bat.blocks])
    assert all(relative_error(a, b) < FP64 for a, b in zip(gradients, expected, strict=True))


def test_it_compiles_whole_and_gives_the_same_output_and_gradients():
    """Without the suite's run-time shape checks, which append to a list inside what is recomputed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.Conv2d(4, 8, 3, padding=1))
    adapter_set = attach({"unet": net}, make_spec("bat", rank=4), {"unet": "all"})
    for parameter in adapter_set.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 4, 5, 32)
    expected = net(x)
    wanted = torch.autograd.grad(expected.square().sum(), adapter_set.parameters())
    config.update("jaxtyping_disable", True)
    try:
        torch.compiler.reset()
        found = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        gradients = torch.autograd.grad(found.square().sum(), adapter_set.parameters())
    finally:
        config.update("jaxtyping_disable", False)
    assert relative_error(found, expected) < FP32
    assert all(relative_error(a, b) < FP32 for a, b in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 10), (10, 24)])
def test_blocks_that_do_not_divide_the_weight_are_refused_with_what_to_do(inputs: int, outputs: int):
    with pytest.raises(UserInputError, match="blocks of 4 do not divide") as caught:
        build(nn.Linear(inputs, outputs))
    assert "rank that divides both" in caught.value.fix
