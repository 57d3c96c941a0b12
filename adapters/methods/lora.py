"""LoRA (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adapters.anchors import INITIALISATIONS, ORDINARY, AnchoredSpec, Anchors
from adapters.base import Calibration, Context, GradientPair
from adapters.low_rank import Chain, LowRank, rank_for
from adapters.sites import Site


class LoraSpec(AnchoredSpec, frozen=True):
    method: Literal["lora"] = "lora"


class Lora(LowRank, spec=LoraSpec):
    """ΔW = s·B A with B = 0 and A ~ N(0, std 1/r) at the start: r(d + κ) parameters.

    The standard deviation is 1/r, as PEFT's "gaussian" and diffusers' SDXL script take it. With another `init` the
    pair starts at its anchors (adapters.anchors), `up` and `down` are what is learnt on top, and ΔW has rank 2r.
    """

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "arXiv 2106.09685"
    equation: ClassVar[str] = "ΔW = α/r · B A"

    anchor_up: Tensor
    anchor_down: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        rank = rank_for(site, spec.rank)
        self.spec, self.scale, self.anchored = spec, spec.scale, spec.init != ORDINARY
        if self.anchored:
            anchors = INITIALISATIONS[spec.init]().anchors(site, weight, spec, context)
            self.register_buffer("anchor_up", anchors.up.to(weight).contiguous())
            self.register_buffer("anchor_down", anchors.down.to(weight).contiguous())
            self.down = nn.Parameter(weight.new_zeros(rank, site.columns))
        else:
            down = torch.randn(rank, site.columns, generator=context.generator(site.name)) / rank
            self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(site.rows, rank // site.groups))

    def chain(self) -> Chain:
        if not self.anchored:
            return Chain(self.up, self.down, self.scale)
        return Chain(*anchored(self.site, self.up, self.down, self.anchor_up, self.anchor_down), self.scale)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"down": [self.down], "up": [self.up]}

    def gradient_pair(self) -> GradientPair:
        if not self.anchored:
            return GradientPair(self.up, self.down, self.up, self.down, self.scale)
        up, down = self.anchor_up + self.up, self.anchor_down + self.down
        return GradientPair(self.up, self.down, up.detach(), down.detach(), self.scale)

    def calibrations(self) -> Sequence[Calibration]:
        if not self.anchored:
            return ()
        found = INITIALISATIONS[self.spec.init]().calibration(
            self.site, self.spec, Anchors(self.anchor_up, self.anchor_down)
        )
        return () if found is None else (found,)


def anchored(site: Site, up: Tensor, down: Tensor, anchor_up: Tensor, anchor_down: Tensor) -> tuple[Tensor, Tensor]:
    """δB(A0 + δA) + B0·δA as one pair of twice the rank: [δB, B0] and [A0 + δA; δA], stacked group by group."""
    wide = torch.cat([up, anchor_up], dim=1)
    halves = [site.split_groups(anchor_down + down), site.split_groups(down)]
    return wide, torch.cat(halves, dim=1).flatten(0, 1)
