"""The Cayley transform, and the butterfly against one of dense permutations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.rotations import block_turns, cayley, turn, turn_weight
from adapters.sites import make_site
from tests.tolerances import FP64, relative_error, same_bits


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def identities(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype).expand(like.shape)


def dense_butterfly(turns: Tensor) -> Tensor:
    """R of x·R with x's indices in binary-like digits (arXiv 2311.06243, section 4), as a dense c×c matrix."""
    levels, blocks, size, _ = turns.shape
    whole = torch.eye(blocks * size, dtype=turns.dtype)
    for level in range(levels):
        span, half = 2**level, size // 2
        order = (
            [
                (start + part * span + offset) * half + inside
                for start in range(0, 2 * blocks, 2 * span)
                for offset in range(span)
                for part in (0, 1)
                for inside in range(half)
            ]
            if level
            else list(range(blocks * size))
        )
        gather = torch.eye(blocks * size, dtype=turns.dtype)[:, order]
        factor = gather @ torch.block_diag(*(turns[level] + torch.eye(size, dtype=turns.dtype))) @ gather.mT
        whole = factor @ whole
    return whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_zero_gives_exactly_the_identity(size: int, dtype: torch.dtype):
    found = cayley(torch.zeros(3, size, size, dtype=dtype))
    assert same_bits(found, identities(found))
    assert not block_turns(torch.zeros(3, size * (size - 1) // 2, dtype=dtype), size).any()


def test_the_result_is_orthogonal_with_determinant_1():
    found = cayley(10 * random(4, 9, 9))
    assert relative_error(found @ found.mT, identities(found)) < FP64
    assert relative_error(torch.linalg.det(found), torch.ones(4)) < FP64


def test_it_is_the_quotient_of_i_minus_q_and_i_plus_q_and_only_the_skew_part_counts():
    p = random(4, 6, 6)
    q, eye = (p - p.mT) / 2, torch.eye(6, dtype=torch.float64)
    assert relative_error(cayley(p), (eye - q) @ torch.linalg.inv(eye + q)) < FP64
    assert relative_error(cayley(p + p.mT @ p), cayley(p)) < FP64


def test_autocast_does_not_reach_the_solve():
    p = random(2, 8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = cayley(p)
    assert same_bits(found, cayley(p)) and found.dtype == torch.float32


def test_a_bf16_parameter_is_solved_in_fp32():
    p = random(2, 8, 8).bfloat16()
    assert same_bits(cayley(p), cayley(p.float()))


def test_small_angles_keep_their_digits():
    """R − I of an angle of 1e-6 is 2e-6: R itself in bf16 would be I."""
    turns = block_turns(torch.full((1, 1), 1e-6), 2)
    assert torch.allclose(turns, torch.tensor([[0.0, -2e-6], [2e-6, 0.0]]), rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize(("size", "levels"), [(5, 1), (4, 1), (4, 2), (2, 4)], ids=str)
def test_a_turn_is_the_product_with_the_dense_matrix(size: int, levels: int):
    channels = size * 2**levels if levels > 1 else 3 * size
    turns = block_turns(random(levels, channels // size, size * (size - 1) // 2), size)
    dense = dense_butterfly(turns)
    x = random(2, 3, channels)
    assert relative_error(turn(x, turns, -1), x @ dense - x) < FP64
    assert relative_error(turn(x, turns, -1, transposed=True), x @ dense.mT - x) < FP64
    picture = random(2, channels, 3, 5)
    expected = torch.einsum("nkhw,kc->nchw", picture, dense) - picture
    assert relative_error(turn(picture, turns, -3), expected) < FP64


@pytest.mark.parametrize("layer", [nn.Linear(16, 6), nn.Conv2d(16, 6, 3), nn.Conv2d(16, 6, 3, groups=2)], ids=str)
def test_turning_the_weight_is_turning_its_input(layer: nn.Linear | nn.Conv2d):
    site = make_site("unet.a", layer.double())
    assert site is not None
    turns = block_turns(random(2, 4, 6), 4)
    x = random(2, 16, 5, 5) if site.kind == "conv" else random(2, 16)
    weight = site.weight.detach() + turn_weight(site, site.weight.detach(), turns)
    found = torch.func.functional_call(layer, {"weight": weight}, (x,))
    assert relative_error(found, layer(x + turn(x, turns, site.channel_axis))) < FP64


def test_a_full_butterfly_lets_every_channel_reach_every_other():
    """log2(c) levels of 2×2 rotations make a dense matrix: what block-diagonal ones never do (section 4)."""
    full = dense_butterfly(block_turns(random(4, 8, 1), 2))
    reached = turn(torch.eye(16, dtype=torch.float64), block_turns(random(4, 8, 1), 2), -1) + torch.eye(16)
    assert reached.abs().min() > 0 and relative_error(reached, full) < FP64
    flat = turn(torch.eye(16, dtype=torch.float64), block_turns(random(1, 8, 1), 2), -1) + torch.eye(16)
    assert (flat != 0).sum() == 16 * 2
