"""NP-LoRA (arXiv 2511.11051): what one change looks at is taken from the next."""

from __future__ import annotations

from typing import ClassVar

import torch

from adapters.fusion.deltas import LayerDelta, concatenated, row_directions, without_rows
from adapters.fusion.way import FusionLayer, Way


class NullSpace(Way, name="null-space"):
    """ΔW_1 + ΔW_2 (I − V_1ᵀV_1) + …: V_1 are ΔW_1's principal right singular vectors.

    The first adapter is protected from the second, both from the third; the paper protects the style from the subject.
    Hard takes all of what they look at away, soft (`softness` μ) the part μ/(1 + μ): from the sum at 0 to hard at ∞.
    """

    title: ClassVar[str] = "Null space"
    paper: ClassVar[str] = "arXiv 2511.11051"
    meaning: ClassVar[str] = (
        "Takes from each subject what those before it already use, so the order counts; 57 to 63 of 100 kept."
    )
    knobs: ClassVar[tuple[str, ...]] = ("energy", "softness")

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        site, options = layer.site, layer.options
        part = 1.0 if options.softness is None else options.softness / (1 + options.softness)
        kept: list[LayerDelta] = []
        taken = row_directions(site, layer.deltas[0], options.energy)
        for number, delta in enumerate(layer.deltas):
            if number:
                delta = without_rows(site, delta, taken, part)
                taken = _joined(taken, row_directions(site, delta, options.energy))
            kept.append(delta)
        return concatenated(site, kept)


def _joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One orthonormal basis of both, [g, n, κ]."""
    return torch.linalg.qr(torch.cat([first, second], dim=1).mT).Q.mT
