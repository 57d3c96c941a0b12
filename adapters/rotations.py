"""Rotations from free parameters, and block-diagonal ones of a layer's input or output channels (OFT, BOFT).

Vectors are rows here, as in peft: x is turned into x·R, which is the layer W' = W·Rᵀ; W' = R·W turns outputs by Rᵀ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adapters.sites import Site

Side = Literal["input", "output"]


def turned_channels(site: Site, side: Side) -> int:
    """How many channels a rotation on that side turns, of all groups together."""
    return site.rows if side == "output" else site.channels


def cayley(p: Tensor) -> Tensor:
    """R = (I − Q)(I + Q)⁻¹ with Q = ½(P − Pᵀ): orthogonal, determinant 1, and exactly I at P = 0.

    By a solve, in fp32 (fp64 for fp64) and never under autocast: in bf16 R would leave orthogonality by 5e-3. The
    singular values of I + Q are at least 1, so there is no singular case to check for (a check would make the GPU
    wait for the CPU).

    Args:
        p: [..., n, n], free matrices.

    Returns:
        [..., n, n] in fp32, or fp64.
    """
    with torch.autocast(p.device.type, enabled=False):
        p = p if p.dtype == torch.float64 else p.float()
        q = 0.5 * (p - p.mT)
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        return torch.linalg.solve_ex(eye + q, eye - q).result  # the two factors commute


def block_turns(angles: Tensor, size: int) -> Tensor:
    """R − I of each block, [..., n, n], from the n(n − 1)/2 numbers above the diagonal of Q: 0 at 0, exactly.

    The difference is what is kept, since R itself would lose small angles in bf16.
    """
    rows, columns = torch.triu_indices(size, size, 1, device=angles.device)
    upper = angles.new_zeros(*angles.shape[:-1], size, size)
    upper[..., rows, columns] = 2 * angles
    turned = cayley(upper)
    return turned - torch.eye(size, dtype=turned.dtype, device=turned.device)


def turn(x: Tensor, turns: Tensor, axis: int, transposed: bool = False) -> Tensor:
    """x·R − x for the butterfly R = R_{m−1} ⋯ R_0 (arXiv 2311.06243, section 4); m = 1 is plain block-diagonal.

    Level i is block-diagonal after a shuffle: half a block is coupled with the half block that lies 2^i half
    blocks on. The shuffle is a transposed view, not a c×c permutation matrix.

    Args:
        x: c channels in the dimension `axis`.
        turns: R_i − I, [m, c/n, n, n] (block_turns); cast to x's dtype.
        transposed: Rᵀ in the place of R.
    """
    turns = turns.to(x.dtype)
    levels = range(len(turns)) if transposed else reversed(range(len(turns)))
    change: Tensor | None = None
    for level in levels:
        moved = x if change is None else x + change
        blocks = turns[level].mT if transposed else turns[level]
        step = _unshuffle(_mix(_shuffle(moved, blocks, axis, level), blocks, axis), blocks, axis, level)
        change = step if change is None else change + step
    assert change is not None
    return change


def turn_weight(site: Site, weight: Tensor, turns: Tensor, side: Side = "input") -> Tensor:
    """W' − W: of inputs W(Rᵀ − I), group by group and tap by tap; of outputs (R − I)W."""
    if side == "output":
        rows = site.matricise(weight)
        return site.as_weight(turn(rows.mT, turns.to(rows.dtype), -1, transposed=True).mT)
    batch = site.as_inputs(weight)
    return site.from_inputs(turn(batch, turns.to(weight.dtype), site.channel_axis, transposed=True))


def _mix(x: Tensor, blocks: Tensor, axis: int) -> Tensor:
    """Each run of n channels times its own n×n matrix."""
    split = x.unflatten(axis, tuple(blocks.shape[:2]))
    pattern = "...bk,bkc->...bc" if axis == -1 else "...bkhw,bkc->...bchw"
    return torch.einsum(pattern, split, blocks).flatten(axis - 1, axis)


def _shuffle(x: Tensor, blocks: Tensor, axis: int, level: int) -> Tensor:
    return x if level == 0 else _swap(x, (2, 2**level), blocks.shape[-1] // 2, axis)


def _unshuffle(x: Tensor, blocks: Tensor, axis: int, level: int) -> Tensor:
    return x if level == 0 else _swap(x, (2**level, 2), blocks.shape[-1] // 2, axis)


def _swap(x: Tensor, sizes: tuple[int, int], half: int, axis: int) -> Tensor:
    split = x.unflatten(axis, (-1, *sizes, half))
    return split.transpose(axis - 2, axis - 1).flatten(axis - 3, axis)
