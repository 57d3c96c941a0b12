"""One layer's change as a product of two factors, and what can be said of several without a d×κ matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.base import Adapter
from adapters.methods.boft import Boft
from adapters.methods.oft import Oft
from adapters.rotations import block_turns
from adapters.sites import Site
from adapters.svd import Decomposer


@dataclass(frozen=True)
class Columns:
    """The singular vectors of W that a spectral adapter learnt on."""

    indices: Tensor
    """[r/g]"""
    left: Tensor
    """U, [d, r/g]"""
    right: Tensor
    """Vᵀ, [r, κ]"""


@dataclass(frozen=True)
class Rotation:
    """What OFT and BOFT do to a layer: diag(1 + g)·W after its input channels were turned."""

    turns: Tensor
    """R − I of each level and block, [m, c/n, n, n] (adapters.rotations)."""
    gain: Tensor
    """g, [d]; 0 for OFT."""


@dataclass(frozen=True)
class LayerDelta:
    """ΔW = up · down, group by group, in fp32 (fp64 for an fp64 base)."""

    up: Tensor
    """[d, r/g]"""
    down: Tensor
    """[r, κ]"""
    error: float = 0.0
    """‖ΔW − up·down‖/‖ΔW‖: what the factors leave out of a change that has no such form."""
    columns: Columns | None = None
    rotation: Rotation | None = None
    """Of OFT and BOFT at weight 1: a rotation weakened in weight space is none."""

    @property
    def rank(self) -> int:
        return len(self.down)

    def times(self, weight: float) -> LayerDelta:
        return replace(self, up=weight * self.up, rotation=self.rotation if weight == 1 else None)


@torch.no_grad()
def delta_of(adapter: Adapter, weight: Tensor, rank: int) -> LayerDelta:
    """An adapter's change of one layer; by the `rank` largest singular values where it has no factors of its own.

    Args:
        weight: W in fp32 or fp64.
    """
    factors = adapter.factors()
    if factors is None:
        told = compress(adapter.site, adapter.site.matricise(adapter.delta_weight(weight)), rank)
        return replace(told, rotation=_rotation_of(adapter, weight))
    names = ("columns", "left", "right")
    found = [getattr(adapter, name, None) for name in names]
    columns = None if any(value is None for value in found) else Columns(*found)  # pyright: ignore[reportArgumentType]
    return LayerDelta(factors[0].detach().to(weight), factors[1].detach().to(weight), columns=columns)


def _rotation_of(adapter: Adapter, weight: Tensor) -> Rotation | None:
    if not isinstance(adapter, Oft | Boft):
        return None
    gain = adapter.gain.detach().to(weight) if isinstance(adapter, Boft) else weight.new_zeros(adapter.site.rows)
    return Rotation(block_turns(adapter.angles.detach().to(weight), adapter.size), gain)


def compress(site: Site, matrix: Tensor, rank: int) -> LayerDelta:
    """The best factors of `rank` for a d×κ matrix (Eckart and Young), and the error they make."""
    groups = site.groups
    blocks = site.split_groups(matrix)
    count = max(1, min(rank // groups, *blocks.shape[1:]))
    part = Decomposer().top(blocks, count)
    up, down = (part.u * part.s[:, None]).flatten(0, 1), part.vt.flatten(0, 1)
    whole = matrix.norm()
    left = (whole.square() - part.s.square().sum()).clamp_min(0).sqrt()
    return LayerDelta(up, down, float(left / whole) if float(whole) > 0 else 0.0)


def concatenated(site: Site, deltas: Sequence[LayerDelta]) -> LayerDelta:
    """The sum, exactly: of rank Σr."""
    ups = torch.cat([delta.up for delta in deltas], dim=1)
    downs = torch.cat([site.split_groups(delta.down) for delta in deltas], dim=1).flatten(0, 1)
    return LayerDelta(ups, downs)


def spans_of(deltas: Sequence[LayerDelta]) -> list[slice]:
    """Where each one's part of z = [A_1; …; A_N] x lies."""
    ends = torch.tensor([delta.rank for delta in deltas]).cumsum(0).tolist()
    return [slice(end - delta.rank, end) for end, delta in zip(ends, deltas, strict=True)]


def in_terms_of(old: Tensor, new: Tensor) -> Tensor:
    """C with new ≈ C · old, as nearly as can be; the identity where they are the same. [r, κ], [q, κ] → [q, r]"""
    if old.shape == new.shape and torch.equal(old, new):
        return torch.eye(len(old), dtype=old.dtype, device=old.device)
    return torch.linalg.lstsq(old.mT, new.mT).solution.mT


def truncated(site: Site, delta: LayerDelta, rank: int) -> LayerDelta:
    """The best factors of `rank` for up · down, from two thin QRs: no d×κ matrix."""
    up, down = site.split_groups(delta.up), site.split_groups(delta.down)
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.mT)
    u, s, vt = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    count = max(1, min(rank // site.groups, s.shape[-1]))
    kept = s[..., :count]
    whole, rest = s.square().sum(), s[..., count:].square().sum()
    new_up = ((left.Q @ u[..., :count]) * kept[:, None]).flatten(0, 1)
    new_down = (vt[..., :count, :] @ right.Q.mT).flatten(0, 1)
    return LayerDelta(new_up, new_down, float((rest / whole).sqrt()) if float(whole) > 0 else 0.0)


def inner(site: Site, first: LayerDelta, second: LayerDelta) -> float:
    """⟨ΔW_1, ΔW_2⟩ from (r1×r2) products alone."""
    ups = site.split_groups(first.up).mT @ site.split_groups(second.up)
    downs = site.split_groups(first.down) @ site.split_groups(second.down).mT
    return float((ups * downs).sum())


def row_directions(site: Site, delta: LayerDelta, energy: float = 1.0) -> Tensor:
    """Right singular vectors of ΔW that hold `energy` of its square, [g, n, κ], orthonormal."""
    whole = truncated(site, delta, delta.rank)
    downs = site.split_groups(whole.down)
    squares = site.split_groups(whole.up).square().sum((0, 1))
    total = squares.sum()
    if float(total) == 0.0:
        return downs[:, :0]
    before = squares.cumsum(0) - squares
    return downs[:, before < energy * total * (1 - 1e-12)]


def without_rows(site: Site, delta: LayerDelta, directions: Tensor, part: float = 1.0) -> LayerDelta:
    """ΔW (I − part·VᵀV): what `directions` V [g, n, κ], orthonormal, see of x is taken from it."""
    down = site.split_groups(delta.down)
    kept = down - part * (down @ directions.mT) @ directions
    return LayerDelta(delta.up, kept.flatten(0, 1), delta.error)


def without_columns(site: Site, delta: LayerDelta, left: Tensor) -> LayerDelta:
    """(I − U Uᵀ) ΔW for orthonormal U [g, d/g, n]."""
    up = site.split_groups(delta.up)
    return LayerDelta((up - left @ (left.mT @ up)).flatten(0, 1), delta.down, delta.error)
