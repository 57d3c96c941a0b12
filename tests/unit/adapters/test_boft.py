"""BOFT's own promises; the butterfly itself is tested in test_rotations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.base import Context
from adapters.errors import UserInputError
from adapters.methods.boft import Boft, BoftSpec
from adapters.methods.oft import Oft, OftSpec
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error


def build(layer: nn.Linear | nn.Conv2d, block_size: int, factors: int) -> tuple[Boft, Site]:
    torch.manual_seed(0)
    site = make_site("unet.a", layer.double())
    assert site is not None
    spec = BoftSpec(block_size=block_size, factors=factors)
    boft = Boft(site, site.weight.detach(), spec, Context(0, (site,)))
    for parameter in boft.parameters():
        nn.init.normal_(parameter, std=0.3)
    return boft, site


@torch.no_grad()
def test_with_one_factor_and_no_gain_it_is_oft():
    boft, site = build(nn.Conv2d(8, 6, 3), 4, 1)
    oft = Oft(site, site.weight, OftSpec(block_size=4), Context(0, (site,)))
    oft.angles.copy_(boft.angles)
    boft.gain.zero_()
    x = torch.randn(2, 8, 5, 5).double()
    assert relative_error(boft.delta(x, site.module(x)), oft.delta(x, site.module(x))) < FP64


@torch.no_grad()
def test_rows_change_their_length_by_the_gain_alone():
    boft, site = build(nn.Linear(32, 6), 4, 3)
    moved = site.weight + boft.delta_weight(site.weight)
    assert relative_error(moved.norm(dim=1), (1 + boft.gain).abs() * site.weight.norm(dim=1)) < FP64


@torch.no_grad()
def test_the_bias_is_not_scaled():
    boft, site = build(nn.Linear(16, 6), 4, 2)
    x = torch.zeros(1, 16).double()
    assert boft.delta(x, site.module(x)).abs().max() == 0


def test_a_span_that_does_not_divide_the_channels_is_refused_with_what_to_do():
    with pytest.raises(UserInputError, match="span of 16 does not divide") as caught:
        build(nn.Linear(24, 6), 8, 2)
    assert "smaller block_size" in caught.value.fix


def test_an_odd_block_cannot_be_halved():
    with pytest.raises(UserInputError, match="3 is odd"):
        build(nn.Linear(24, 6), 3, 2)
    build(nn.Linear(24, 6), 3, 1)
