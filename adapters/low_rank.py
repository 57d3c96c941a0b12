"""What all methods share whose ΔW is a chain of small factors: a subclass only says which."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from adapters.base import Adapter, Context, RankSpec
from adapters.errors import UserInputError
from adapters.kernels import chain, chain_row_norm2, fold
from adapters.sites import Site


class Chain(NamedTuple):
    """ΔW = scale · up · core · down (kernels.chain)."""

    up: Tensor
    """[d, r'/g]"""
    down: Tensor
    """[r, κ]"""
    scale: float = 1.0
    core: Tensor | None = None
    """[r] (a diagonal), [r', r/g], or None (the identity)."""


class LowRank(Adapter):
    """An adapter that is told by its chain alone: merging, DoRA's norm and export follow from it."""

    projected: ClassVar[str | None] = None
    """The factor A [r, κ] whose W Aᵀ is a part of the chain; `forward` is given it, of many layers at once."""
    staged: tuple[Tensor, Tensor] | None = None
    """(up, down) of this forward pass, computed for many layers at once (adapters.bank)."""

    def __init__(self, site: Site, weight: Tensor, spec: RankSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout = spec.dropout

    @abstractmethod
    def chain(self) -> Chain:
        """The factors as they are now, with gradients."""

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        return chain(self.site, x, *self.chain()) if self.staged is None else chain(self.site, x, *self.staged)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.site.as_weight(self.site.product(*self.factors())).to(weight.dtype)

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        return chain_row_norm2(self.site, base_norm2, *self.factors())

    def factors(self) -> tuple[Tensor, Tensor]:
        up, down, scale, core = self.chain()
        return fold(self.site, up, scale, core), down

    def forward(self, *projected: Tensor) -> tuple[Tensor, Tensor]:
        """`factors`, where torch.func can call it with other tensors in the place of this layer's."""
        return self.factors()


def rank_for(site: Site, rank: int) -> int:
    """`rank`, checked against the layer's groups. Raises UserInputError where it cannot be split among them."""
    if rank % site.groups:
        raise UserInputError(
            f"{site.name} has {site.groups} groups, and rank {rank} cannot be split among them.",
            f"Choose a rank that is a multiple of {site.groups}, or leave this layer out.",
        )
    return rank


def rank_within(site: Site, rank: int) -> int:
    """`rank`, checked against the layer's size, too: a decomposition of W has no more columns than that."""
    limit = site.groups * min(site.rows // site.groups, site.columns)
    if rank > limit:
        raise UserInputError(
            f"{site.name} is {site.rows}×{site.columns}: rank {rank} is more than its {limit} singular values.",
            f"Choose a rank of at most {limit}, or give this layer one of its own (targets.overrides).",
        )
    return rank_for(site, rank)
