"""The official merge of Spectral Adapter: the mean of the adapted weights."""

from __future__ import annotations

from typing import ClassVar

from adapters.fusion.deltas import LayerDelta, concatenated
from adapters.fusion.way import FusionLayer, Way


class Mean(Way, name="mean"):
    """(1/N) Σ (W + ΔW_i) − W: every subject keeps an N-th of its change."""

    title: ClassVar[str] = "Mean"
    paper: ClassVar[str] = "arXiv 2405.13952"
    meaning: ClassVar[str] = (
        "Weakens each subject to its share: other pictures move least, and so do the subjects (50 of 100 kept)."
    )

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        return concatenated(layer.site, [delta.times(1 / layer.concepts) for delta in layer.deltas])
