"""Bone, later renamed MiSS (arXiv 2409.15371): shards of the input are summed and share one small matrix."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, RankSpec
from adapters.errors import UserInputError
from adapters.low_rank import Chain, LowRank, rank_for
from adapters.sites import Site


class BoneSpec(RankSpec, frozen=True):
    method: Literal["bone"] = "bone"
    shards: Literal["contiguous", "strided"] = Field(
        default="contiguous",
        description="Which of the κ inputs are summed into number i of r: contiguous, those from i·κ/r to (i+1)·κ/r; "
        "strided, those with j mod r = i (as peft's MiSS has it). One is a column permutation of the other.",
    )


class Bone(LowRank, spec=BoneSpec):
    """ΔW = D·A with D = 0 at the start and A the r×κ matrix of zeros and ones that says who is summed: r·d parameters.

    It is LoRA with that frozen A. On a Linear layer A x is a reshape and a sum, without a product; on a convolution,
    and where r does not divide κ, it is the matrix. D here is d×(r/g), the transpose of peft's.
    """

    title: ClassVar[str] = "Bone"
    paper: ClassVar[str] = "arXiv 2409.15371"
    equation: ClassVar[str] = "ΔW = D · A, A the indicator of the shards"

    fixed: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: BoneSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.count = rank_for(site, spec.rank) // site.groups
        self.strided = spec.shards == "strided"
        if self.count > site.columns:
            raise UserInputError(
                f"{site.name} has {site.columns} inputs, too few for {self.count} shards.",
                f"Choose a rank of at most {site.columns * site.groups}, or leave this layer out.",
            )
        self.reshapes = site.kind == "linear" and site.columns % self.count == 0
        if not self.reshapes:
            self.register_buffer("fixed", self.indicator(weight), persistent=False)
        self.up = nn.Parameter(weight.new_zeros(site.rows, self.count))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        if not self.reshapes:
            return super().delta(x, y_base)
        width, dropped = self.site.columns // self.count, F.dropout(x, self.dropout, self.training)
        if self.strided:
            sums = dropped.unflatten(-1, (width, self.count)).sum(-2)
        else:
            sums = dropped.unflatten(-1, (self.count, width)).sum(-1)
        return self.site.apply_up(sums, self.up.to(sums.dtype))

    def chain(self) -> Chain:
        return Chain(self.up, self.indicator(self.up) if self.reshapes else self.fixed)

    def indicator(self, like: Tensor) -> Tensor:
        """A, [r, κ], in the dtype and on the device of `like`."""
        inputs = torch.arange(self.site.columns, device=like.device)
        shard = inputs % self.count if self.strided else inputs * self.count // self.site.columns
        one_group = torch.arange(self.count, device=like.device)[:, None] == shard
        return one_group.to(like.dtype).repeat(self.site.groups, 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"up": [self.up]}
