"""The arithmetic of the table: from likenesses to shares of an identity kept, leaked and drifted, with intervals.

A likeness is the cosine of two looks (look.Look). Shares are ratios of sums over members and cells (a cell is one
group and one seed of training), so that a member whose look is hard to learn does not count by its noise; intervals
are percentiles over resampled cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """Mean likeness of what stands in place i to the look of member j, [n, n], over the pictures of a group and seed.

    Args:
        joint: with all adapters.
        base: with none.
        alone: row i with member i's adapter alone.
        elsewhere: entry i, j with member j's adapter alone, what that one does to the place of i.
    """

    joint: Tensor
    base: Tensor
    alone: Tensor
    elsewhere: Tensor


@dataclass(frozen=True)
class Share:
    """A ratio with its 95 % interval."""

    value: float
    low: float
    high: float


def kept(cell: Cell) -> tuple[float, float]:
    """How far members are from the base's look of the thing, joined and alone: 1 is as like as alone."""
    base = cell.base.diagonal().sum()
    return float(cell.joint.diagonal().sum() - base), float(cell.alone.diagonal().sum() - base)


def leaked(cell: Cell) -> tuple[float, float]:
    """How far a place has gone from the base's towards another member, over the way there: 1 is that member itself."""
    return _towards_others(cell.joint, cell)


def leaked_alone(cell: Cell) -> tuple[float, float]:
    """The same of one adapter alone, in a place where it was not asked for."""
    return _towards_others(cell.elsewhere, cell)


def _towards_others(found: Tensor, cell: Cell) -> tuple[float, float]:
    others = ~torch.eye(len(found), dtype=torch.bool)
    whole = cell.alone.diagonal()[None, :] - cell.base
    return float((found - cell.base)[others].sum()), float(whole[others].sum())


def share(parts: Sequence[tuple[float, float]], draws: int = 2000, seed: int = 0) -> Share:
    """Σ numerators / Σ denominators, and its percentiles 2.5 and 97.5 over resampled parts (bootstrap)."""
    pairs = torch.tensor(parts, dtype=torch.float64)
    rows = torch.randint(len(pairs), (draws, len(pairs)), generator=torch.Generator().manual_seed(seed))
    sums = pairs[rows].sum(1)
    found = sums[:, 0] / sums[:, 1]
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    whole = pairs.sum(0)
    return Share(float(whole[0] / whole[1]), low, high)


def difference(
    first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]], draws: int = 2000, seed: int = 0
) -> Share:
    """share(first) − share(second) over the same cells, resampled together."""
    both = torch.tensor([first, second], dtype=torch.float64)
    rows = torch.randint(both.shape[1], (draws, both.shape[1]), generator=torch.Generator().manual_seed(seed))
    sums, whole = both[:, rows].sum(2), both.sum(1)
    ratios, ratio = sums[..., 0] / sums[..., 1], whole[:, 0] / whole[:, 1]
    found = ratios[0] - ratios[1]
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Share(float(ratio[0] - ratio[1]), low, high)


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean. [n] → [n]"""
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal - 1) / 2


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks; 0 where one of them does not vary."""
    a, b = (ranks(torch.tensor(values, dtype=torch.float64)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """How often a likeness of `positive` is above one of `negative` (ties count half): 0.5 tells nothing, 1 all."""
    above = (positive[:, None] > negative[None]).double() + 0.5 * (positive[:, None] == negative[None]).double()
    return float(above.mean())
