"""How a budget of ranks falls over a run, and who keeps one (AdaLoRA, arXiv 2303.10512)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """b(t): from `first` ranks to `last`, cubically, between steps `begin` and `end` (equation 12 of the paper)."""

    first: int
    last: int
    begin: int
    end: int

    def budget(self, step: int) -> int:
        """Rounded down."""
        left = 1 - (min(max(step, self.begin), self.end) - self.begin) / (self.end - self.begin)
        return int(self.last + (self.first - self.last) * left**3)


def best(scores: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest of `scores` [n]; of equal ones the earlier wins, so that it is exactly as many."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[scores.argsort(descending=True, stable=True)[:count]] = True
    return mask
