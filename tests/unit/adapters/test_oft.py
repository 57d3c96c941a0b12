"""OFT against dense rotations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.base import Context
from adapters.errors import UserInputError
from adapters.methods.oft import Oft, OftSpec, nearest_block
from adapters.rotations import cayley
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error


def build(layer: nn.Linear | nn.Conv2d, block_size: int = 4) -> tuple[Oft, Site]:
    torch.manual_seed(0)
    site = make_site("unet.a", layer.double())
    assert site is not None
    oft = Oft(site, site.weight.detach(), OftSpec(block_size=block_size), Context(0, (site,)))
    nn.init.normal_(oft.angles)
    return oft, site


@torch.no_grad()
def test_the_angles_between_rows_are_kept():
    """W' W'ᵀ = W Wᵀ: the hyperspherical energy is unchanged (section 3)."""
    oft, site = build(nn.Linear(24, 10))
    moved = site.weight + oft.delta_weight(site.weight)
    assert relative_error(moved @ moved.mT, site.weight @ site.weight.mT) < FP64
    assert relative_error(moved, site.weight) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_every_row_keeps_its_length_on_a_convolution(groups: int):
    oft, site = build(nn.Conv2d(16, 6, 3, groups=groups))
    norms = site.matricise(site.weight).square().sum(1)
    moved = site.matricise(site.weight + oft.delta_weight(site.weight))
    assert relative_error(moved.square().sum(1), norms) < FP64
    assert relative_error(oft.row_norm2(norms), norms) == 0


@torch.no_grad()
def test_a_convolutions_taps_are_all_turned_by_the_same_dense_matrix():
    oft, site = build(nn.Conv2d(8, 6, 3))
    blocks = []
    for angles in oft.angles[0]:
        q = torch.zeros(4, 4).double()
        q[*torch.triu_indices(4, 4, 1)] = angles
        blocks.append(cayley(2 * q))
    dense = torch.block_diag(*blocks)
    expected = torch.stack(
        [torch.stack([site.weight[:, :, i, j] @ dense.mT for j in range(3)], -1) for i in range(3)], -2
    )
    assert relative_error(site.weight + oft.delta_weight(site.weight), expected) < FP64


@pytest.mark.parametrize(("channels", "wanted", "found"), [(40, 6, 5), (32, 6, 4), (40, 32, 40), (7, 3, 7), (4, 32, 4)])
def test_a_block_size_that_does_not_divide_gives_way_to_the_nearest_that_does(channels: int, wanted: int, found: int):
    site = make_site("unet.a", nn.Linear(channels, 3))
    assert site is not None
    assert nearest_block(site, wanted) == found


def test_a_depthwise_convolution_has_nothing_to_rotate():
    with pytest.raises(UserInputError, match="one channel a group"):
        build(nn.Conv2d(8, 8, 3, groups=8))
