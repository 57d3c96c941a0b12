"""Fusion across orthogonal spectral columns (arXiv 2405.13952, sec. 4), with strengths in the place of a mean."""

from __future__ import annotations

from typing import ClassVar

import torch

from adapters.errors import UserInputError
from adapters.fusion.deltas import LayerDelta, concatenated, without_columns, without_rows
from adapters.fusion.way import FusionLayer, Way
from adapters.fusion.ways.least_squares import repaired


class SpectralColumns(Way, name="spectral"):
    """Σ ΔW_i over disjoint columns of W's singular vectors: exactly W + Σ ΔW_i, without cross terms.

    An adapter of another method has no columns. It is moved to free ones, its rows and columns off those that are
    taken, and where activations are known all are repaired together by least squares.
    """

    title: ClassVar[str] = "Spectral columns"
    paper: ClassVar[str] = "arXiv 2405.13952"
    meaning: ClassVar[str] = "subjects on columns of their own, added; others are moved off those columns and repaired"

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        site = layer.site
        own = [(name, delta.columns) for name, delta in zip(layer.names, layer.deltas, strict=True)]
        taken = [(name, columns) for name, columns in own if columns is not None]
        if not taken:
            raise UserInputError(
                "None of these adapters has columns of its own: spectral fusion needs at least one.",
                "Train with --adapter spectral-a or spectral-r, or choose another --how.",
            )
        for number, (name, columns) in enumerate(taken):
            for other, others in taken[:number]:
                if bool(torch.isin(columns.indices, others.indices).any()):
                    raise UserInputError(
                        f"{other} and {name} learnt on the same columns of {site.name}.",
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
