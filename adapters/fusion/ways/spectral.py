"""Fusion across orthogonal spectral columns (arXiv 2405.13952, sec. 4), with strengths in the place of a mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import torch

from adapters.errors import UserInputError
from adapters.fusion.deltas import LayerDelta, concatenated, without_columns, without_rows
from adapters.fusion.way import Candidate, FusionLayer, Way
from adapters.fusion.ways.least_squares import repaired

_NO_COLUMNS = "None of these adapters has columns of its own: spectral fusion needs at least one."


class SpectralColumns(Way, name="spectral"):
    """Σ ΔW_i over disjoint columns of W's singular vectors: exactly W + Σ ΔW_i, without cross terms.

    An adapter of another method has no columns. It is moved to free ones, its rows and columns off those that are
    taken, and where activations are known all are repaired together by least squares.
    """

    title: ClassVar[str] = "Spectral columns"
    paper: ClassVar[str] = "arXiv 2405.13952"
    meaning: ClassVar[str] = (
        "Adds subjects that were taught on columns of their own, exactly; 59 to 86 of 100 kept, where the 86 "
        "(Spectral-R) had learnt a weak look."
    )
    knobs: ClassVar[tuple[str, ...]] = ("ridge", "background")

    @classmethod
    def refusal(cls, candidates: Sequence[Candidate]) -> str:
        if not any(one.columns for one in candidates):
            return _NO_COLUMNS
        for first, second in combinations(candidates, 2):
            if layers := first.shared_with(second):
                return _met(first.name, second.name, layers[0])
        return ""

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        site = layer.site
        own = [(name, delta.columns) for name, delta in zip(layer.names, layer.deltas, strict=True)]
        taken = [(name, columns) for name, columns in own if columns is not None]
        if not taken:
            raise UserInputError(
                _NO_COLUMNS,
                "Train with --adapter spectral-a or spectral-r, or choose another --how.",
            )
        for number, (name, columns) in enumerate(taken):
            for other, others in taken[:number]:
                if bool(torch.isin(columns.indices, others.indices).any()):
                    raise UserInputError(
                        _met(other, name, site.name),
                        "Train one of them again with --with the other's file, or choose another --how.",
                    )
        if len(taken) == len(own):
            return concatenated(site, layer.deltas)
        left = torch.cat([site.split_groups(columns.left) for _, columns in taken], dim=2).to(layer.weight)
        right = torch.cat([site.split_groups(columns.right) for _, columns in taken], dim=1).to(layer.weight)
        moved = [
            delta if delta.columns is not None else without_rows(site, without_columns(site, delta, left), right)
            for delta in layer.deltas
        ]
        return repaired(layer, moved)


def _met(first: str, second: str, layer: str) -> str:
    return f"{first} and {second} learnt on the same columns of {layer}."
