"""Which columns of a weight's singular vectors a spectral adapter learns on: a slot, so that several subjects fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, RankSpec
from adapters.errors import UserInputError
from adapters.low_rank import LowRank, rank_within
from adapters.sites import Site


class SpectralSpec(RankSpec, frozen=True):
    """r columns of W = U S Vᵀ, the same slot in every layer."""

    rank: int = Field(default=8, ge=1, le=4096, description="How many columns r of the singular vectors are learnt on.")
    columns: Literal["top", "comb"] = Field(
        default="top", description="top: columns r·slot to r·slot + r − 1; comb: every K-th, which evens slots out."
    )
    slot: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default=0,
        description="Which of the K disjoint sets of columns, from 0 on; another for each subject (auto: a free one).",
    )


def slot_count(sites: Sequence[Site], rank: int) -> int:
    """K: how many slots of `rank` columns every one of these layers has."""
    return min(_width(site) * site.groups // rank for site in sites)


def _width(site: Site) -> int:
    """Singular values of one group."""
    return min(site.rows // site.groups, site.columns)


def column_indices(site: Site, spec: SpectralSpec, context: Context) -> Tensor:
    """[r/g] columns of each group, 0 being the largest.

    Raises:
        UserInputError: the rank does not fit the layer, or there is no such slot.
    """
    count = rank_within(site, spec.rank) // site.groups
    slots = max(1, slot_count(context.sites, spec.rank))
    if spec.slot == "auto":
        raise UserInputError("Which slot is not decided yet.", "studio train decides it; elsewhere give a number.")
    if spec.slot >= slots:
        raise UserInputError(
            f"There are {slots} slots of rank {spec.rank} in these layers; slot {spec.slot} is not one of them.",
            f"Choose a slot from 0 to {slots - 1}, a smaller rank, or layers that are wider.",
        )
    steps = torch.arange(count)
    return steps * slots + spec.slot if spec.columns == "comb" else steps + spec.slot * count


class Spectral(LowRank):
    """The columns of a layer as buffers of the file, which never has to find them again: signs flip between drivers."""

    columns: Tensor
    """[r/g], the same in each group."""
    left: Tensor
    """U1, [d, r/g]."""
    sigma: Tensor
    """S1, [r]."""
    right: Tensor
    """V1ᵀ, [r, κ]."""

    def __init__(self, site: Site, weight: Tensor, spec: SpectralSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        indices = column_indices(site, spec, context)
        # exact, also for the top ones: slots are orthogonal and rotations keep W's values only on its own vectors
        part = context.decomposer.columns(site.split_groups(site.matricise(weight)), indices)
        self.register_buffer("columns", indices.to(weight.device))
        self.register_buffer("left", part.u.flatten(0, 1).contiguous())
        self.register_buffer("sigma", part.s.flatten().contiguous())
        self.register_buffer("right", part.vt.flatten(0, 1).contiguous())

    def zeros_like(self, factor: Tensor) -> nn.Parameter:
        return nn.Parameter(torch.zeros_like(factor))
