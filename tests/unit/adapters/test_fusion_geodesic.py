"""OrthoFuse on OFT and BOFT: against angles in the plane and matrix exponentials, in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adapters.errors import UserInputError
from adapters.fusion.fuse import Concept
from adapters.fusion.ways.geodesic import between, restored
from tests.fusing import Net, concept, fused, small_net, weights
from tests.tolerances import FP64, relative_error


@pytest.fixture
def net() -> Net:
    return small_net()


def skew(size: int, seed: int) -> Tensor:
    free = torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.2 * (free - free.mT)


def angle_of(adapter_of: Concept, name: str) -> Tensor:
    """What OFT turns pairs of channels by: Cayley's tan(φ/2) is its parameter."""
    return 2 * adapter_of.adapters.adapters[name].get_parameter("angles").detach().atan()[0, :, 0]


def test_the_way_between_two_rotations_is_that_of_the_exponential():
    first, step = torch.matrix_exp(skew(6, 0)), skew(6, 1)
    eye = torch.eye(6, dtype=torch.float64)
    for t in (0.0, 0.3, 1.0):
        found = between(first - eye, first @ torch.matrix_exp(step) - eye, t)
        assert relative_error(found, first @ torch.matrix_exp(t * step)) < FP64


def test_rotations_by_equal_angles_have_a_way_too():
    turned = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    found = between(torch.zeros_like(eye), torch.block_diag(turned, turned) - eye, 0.5)
    assert relative_error(found @ found, torch.block_diag(turned, turned)) < FP64


def test_restoring_keeps_a_rotation_and_enlarges_its_angles():
    angle, eta = 0.7, 0.9
    turned = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    wider = 2 * math.atan(eta * math.sin(angle))
    expected = torch.tensor([[math.cos(wider), -math.sin(wider)], [math.sin(wider), math.cos(wider)]]).double()
    assert relative_error(restored(turned, eta) + torch.eye(2), expected) < 1e-7


@pytest.mark.parametrize("t", [0.0, 0.5, 0.8])
def test_pairs_of_channels_turn_by_the_angles_formula(net: Net, t: float):
    pair = [concept(net, number, "oft", block_size=2) for number in (0, 1)]
    found = weights(fused(net, pair, "geodesic", position=t, rank=64)[0])["unet.first"]
    first, second = (angle_of(each, "unet.first") for each in pair)
    apart = torch.atan2((second - first).sin(), (second - first).cos())  # the shorter way round
    between_them = first + t * apart
    wider = 2 * ((0.5 + 2 * t * (1 - t)) * between_them.sin()).atan()
    pairs = net.first.weight.unflatten(1, (-1, 2))
    along, across = pairs.unbind(-1)
    cos, sin = wider.cos(), wider.sin()
    turned = torch.stack([along * cos - across * sin, across * cos + along * sin], dim=-1)
    assert relative_error(found, (turned - pairs).flatten(1)) < 1e-9


def test_small_rotations_add_up_halfway(net: Net):
    pair = [concept(net, number, "boft", targets="linear", block_size=2, factors=2) for number in (0, 1)]
    for each in pair:
        for parameter in each.adapters.parameters():
            parameter.data *= 1e-4
    summed, joined = (weights(fused(net, pair, how, rank=64)[0])["unet.first"] for how in ("sum", "geodesic"))
    assert relative_error(joined, summed) < 1e-3


def test_the_result_keeps_each_rows_length(net: Net):
    pair = [concept(net, number, "oft", block_size=4) for number in (0, 1)]
    found = weights(fused(net, pair, "geodesic", rank=64)[0])
    for name, change in found.items():
        weight = pair[0].adapters.adapters[name].site.weight
        assert relative_error((weight + change).flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1)) < 1e-9


@pytest.mark.parametrize(
    ("methods", "knobs", "said"),
    [
        (("oft", "lora"), {}, "no rotation"),
        (("oft", "oft"), {"weight": 0.5}, "weight 1"),
        (("oft", "oft", "oft"), {}, "two adapters"),
    ],
)
def test_no_pair_of_rotations_is_refused(net: Net, methods: tuple[str, ...], knobs: dict[str, float], said: str):
    given = [concept(net, number, method, **knobs) for number, method in enumerate(methods)]
    with pytest.raises(UserInputError, match=said):
        fused(net, given, "geodesic")


def test_blocks_of_other_sizes_are_refused(net: Net):
    pair = [concept(net, number, "oft", block_size=2 + 2 * number) for number in (0, 1)]
    with pytest.raises(UserInputError, match="block_size"):
        fused(net, pair, "geodesic")
