"""DARE (arXiv 2311.03099): entries dropped at random, the others made larger, and added."""

from __future__ import annotations

from typing import ClassVar

import torch

from adapters.fusion.deltas import LayerDelta, compress
from adapters.fusion.way import FusionLayer, Way


class Dare(Way, name="dare"):
    """Σ_i M_i ∘ ΔW_i / density, M_i ~ Bernoulli(density): the sum in expectation; then factored again."""

    title: ClassVar[str] = "DARE"
    paper: ClassVar[str] = "arXiv 2311.03099"
    meaning: ClassVar[str] = (
        "Drops changes at random and strengthens the rest; 55 of 100 kept of two subjects, 27 of three."
    )
    knobs: ClassVar[tuple[str, ...]] = ("density", "rank", "seed", "samples")
    samples_inputs: ClassVar[bool] = True

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        site, density, draws = layer.site, layer.options.density, layer.generator()
        total = torch.zeros_like(site.matricise(layer.weight))
        for delta in layer.deltas:
            kept = torch.rand(total.shape, generator=draws) < density
            total += site.product(delta.up, delta.down) * kept.to(total) / density
        return compress(site, total, layer.rank)
