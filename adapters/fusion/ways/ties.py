"""TIES merging (arXiv 2306.01708): trim, elect a sign, average those that agree."""

from __future__ import annotations

from typing import ClassVar

import torch

from adapters.fusion.deltas import LayerDelta, compress
from adapters.fusion.way import FusionLayer, Way


class Ties(Way, name="ties"):
    """Entry by entry on the dense changes of one layer at a time; the result is factored again.

    Each ΔW_i keeps its `density` largest entries; the sign of their sum is elected; entries of that sign are averaged
    over those that have one, times λ (`scaling`). At λ = 1, the paper's where nothing is validated, changes of other
    entries add up and alike ones stay one.
    """

    title: ClassVar[str] = "TIES"
    paper: ClassVar[str] = "arXiv 2306.01708"
    meaning: ClassVar[str] = (
        "Drops small changes and lets the stronger sign win; 63 of 100 kept of two subjects, 30 of three."
    )
    knobs: ClassVar[tuple[str, ...]] = ("density", "scaling", "rank", "samples")
    samples_inputs: ClassVar[bool] = True

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        site = layer.site
        dense = torch.stack([site.product(delta.up, delta.down) for delta in layer.deltas])
        keep = max(1, round(layer.options.density * dense[0].numel()))
        limits = dense.abs().flatten(1).kthvalue(dense[0].numel() - keep + 1).values
        trimmed = torch.where(dense.abs() >= limits[:, None, None], dense, 0)
        agreeing = torch.where(trimmed.sign() == trimmed.sum(0).sign(), trimmed, 0)
        merged = agreeing.sum(0) / agreeing.ne(0).sum(0).clamp_min(1)
        return compress(site, layer.options.scaling * merged, layer.rank)
