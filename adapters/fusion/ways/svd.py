"""The sum, cut down to a rank."""

from __future__ import annotations

from typing import ClassVar

from adapters.fusion.deltas import LayerDelta, concatenated, truncated
from adapters.fusion.way import FusionLayer, Way


class TruncatedSum(Way, name="svd"):
    """The nearest matrix of rank `rank` (left out: the largest of the adapters') to Σ ΔW_i."""

    title: ClassVar[str] = "Truncated sum"
    paper: ClassVar[str] = "Eckart and Young, 1936"
    meaning: ClassVar[str] = "The plain sum, cut down to a small file; 60 of 100 kept of two subjects, 26 of three."
    knobs: ClassVar[tuple[str, ...]] = ("rank",)

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        rank = layer.options.rank or max(delta.rank for delta in layer.deltas)
        return truncated(layer.site, concatenated(layer.site, layer.deltas), rank)
