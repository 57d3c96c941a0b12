"""Bone is LoRA with a frozen matrix of zeros and ones in the place of A."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.base import Context
from adapters.errors import UserInputError
from adapters.methods.bone import Bone, BoneSpec
from adapters.methods.lora import Lora, LoraSpec
from adapters.registry import make_spec
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error

KINDS = {
    "linear": (lambda: nn.Linear(24, 10), (2, 3, 24)),
    "conv": (lambda: nn.Conv2d(8, 6, 3, padding=1, stride=2), (2, 8, 5, 7)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), (2, 8, 5, 5)),
}
both = pytest.mark.parametrize("shards", ["contiguous", "strided"])


def build(layer: nn.Linear | nn.Conv2d, rank: int, shards: str) -> tuple[Bone, Site]:
    torch.manual_seed(0)
    site = make_site("unet.a", layer.double())
    assert site is not None
    spec = make_spec("bone", rank=rank, shards=shards)
    assert isinstance(spec, BoneSpec)
    bone = Bone(site, site.weight.detach(), spec, Context(0, (site,)))
    nn.init.normal_(bone.up)
    return bone, site


def by_hand(columns: int, count: int, shards: str) -> Tensor:
    """A[i, j] = 1 where input j is summed into number i."""
    matrix = torch.zeros(count, columns, dtype=torch.float64)
    for j in range(columns):
        matrix[j % count if shards == "strided" else j * count // columns, j] = 1
    return matrix


@both
@pytest.mark.parametrize("rank", [4, 10], ids=["even", "uneven"])
@pytest.mark.parametrize("kind", KINDS)
def test_bone_is_lora_with_a_frozen_indicator_as_a(kind: str, rank: int, shards: str):
    make, shape = KINDS[kind]
    bone, site = build(make(), rank, shards)
    lora = Lora(site, site.weight.detach(), LoraSpec(rank=rank), Context(0, (site,)))
    with torch.no_grad():
        lora.up.copy_(bone.up)
        lora.down.copy_(by_hand(site.columns, rank // site.groups, shards).repeat(site.groups, 1))
    x = torch.randn(shape).double().requires_grad_()
    y = site.module(x).detach()
    found, expected = bone.delta(x, y), lora.delta(x, y)
    assert relative_error(found, expected) < FP64
    direction = torch.randn_like(found)
    ours = torch.autograd.grad(found, [x, bone.up], direction)
    theirs = torch.autograd.grad(expected, [x, lora.up], direction)
    assert all(relative_error(a, b) < FP64 for a, b in zip(ours, theirs, strict=True))


def test_the_two_conventions_are_a_permutation_of_the_columns_apart():
    contiguous, site = build(nn.Linear(24, 10), 4, "contiguous")
    strided, _ = build(nn.Linear(24, 10), 4, "strided")
    strided.up = contiguous.up
    order = torch.arange(24).reshape(4, 6).T.flatten()
    assert torch.equal(strided.delta_weight(site.weight), contiguous.delta_weight(site.weight)[:, order])
    assert not torch.equal(strided.delta_weight(site.weight), contiguous.delta_weight(site.weight))


@both
@pytest.mark.parametrize(("columns", "rank"), [(24, 4), (25, 10), (10, 6)])
def test_every_input_is_in_one_shard_and_no_shard_is_empty(columns: int, rank: int, shards: str):
    bone, _ = build(nn.Linear(columns, 5), rank, shards)
    indicator = bone.indicator(bone.up)
    assert torch.equal(indicator.sum(0), torch.ones(columns)) and indicator.sum(1).min() >= columns // rank


def test_on_a_linear_layer_that_the_rank_divides_nothing_but_d_is_kept():
    bone, _ = build(nn.Linear(24, 10), 4, "contiguous")
    assert list(bone.state_dict()) == ["up"] and not list(bone.buffers())


def test_more_shards_than_inputs_are_refused():
    with pytest.raises(UserInputError, match="24 inputs, too few for 25 shards"):
        build(nn.Linear(24, 40), 25, "contiguous")
