"""GLoRA against its dense form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.base import Context
from adapters.inject import attach
from adapters.methods.glora import Glora, GloraSpec
from adapters.registry import make_spec
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error


def build(layer: nn.Linear | nn.Conv2d) -> tuple[Glora, Site]:
    torch.manual_seed(0)
    site = make_site("unet.a", layer.double())
    assert site is not None
    glora = Glora(site, site.weight.detach(), GloraSpec(rank=4, alpha=6.0), Context(0, (site,)))
    for parameter in glora.parameters():
        nn.init.normal_(parameter)
    return glora, site


@torch.no_grad()
def test_the_delta_is_w_times_a_plus_b():
    glora, site = build(nn.Linear(12, 7))
    a, b = glora.a_up.mT @ glora.a_down, glora.b_up @ glora.b_down
    assert relative_error(glora.delta_weight(site.weight), 1.5 * (site.weight @ a + b)) < FP64


@torch.no_grad()
def test_each_group_of_a_convolution_has_its_own_a_and_b():
    glora, site = build(nn.Conv2d(8, 6, 3, groups=2))
    weight, found = site.matricise(site.weight), site.matricise(glora.delta_weight(site.weight))
    for group in (0, 1):
        rows, ranks = slice(3 * group, 3 * group + 3), slice(2 * group, 2 * group + 2)
        a, b = glora.a_up[ranks].mT @ glora.a_down[ranks], glora.b_up[rows] @ glora.b_down[ranks]
        assert relative_error(found[rows], 1.5 * (weight[rows] @ a + b)) < FP64


def test_it_is_the_base_on_a_moved_input_beside_a_lora():
    """LyCORIS's forward on a Linear layer: W(x + s·A2 A1 x) + s·B2 B1 x, with the same gradients."""
    glora, site = build(nn.Linear(12, 7))
    x = torch.randn(3, 12).double().requires_grad_()
    found = glora.delta(x, site.module(x))
    moved = x @ glora.a_down.mT @ glora.a_up
    expected = 1.5 * (moved @ site.weight.detach().mT + x @ glora.b_down.mT @ glora.b_up.mT)
    assert relative_error(found, expected) < FP64
    wanted = [x, *glora.parameters()]
    direction = torch.randn_like(found)
    ours, theirs = torch.autograd.grad(found, wanted, direction), torch.autograd.grad(expected, wanted, direction)
    assert all(relative_error(one, other) < FP64 for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("layer", [nn.Linear(12, 7), nn.Conv2d(8, 6, 3, groups=2)], ids=str)
def test_the_factors_have_twice_the_rank(layer: nn.Linear | nn.Conv2d):
    glora, site = build(layer)
    up, down = glora.factors()
    assert down.shape == (8, site.columns) and up.shape == (site.rows, 8 // site.groups)


def test_merging_after_another_adapter_still_starts_from_the_bases_weight():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 7)).double()
    x = torch.randn(3, 12).double()
    sets = [attach({"unet": net}, make_spec(method, rank=4), {"unet": "all"}) for method in ("lora", "glora")]
    for adapter_set in sets:
        for parameter in adapter_set.parameters():
            nn.init.normal_(parameter)
    expected = net(x)
    for adapter_set in sets:
        adapter_set.merge()
    assert relative_error(net(x), expected) < FP64
