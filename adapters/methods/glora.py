"""GLoRA (arXiv 2306.07967) in LyCORIS's low-rank form: a LoRA of the input beside a LoRA of the output."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.kernels import fold
from adapters.low_rank import Chain, LowRank, rank_for
from adapters.sites import Site


class GloraSpec(LowRankSpec, frozen=True):
    method: Literal["glora"] = "glora"


class Glora(LowRank, spec=GloraSpec):
    """ΔW = s(W·A2 A1 + B2 B1) with A2 = B2 = 0 and A1, B1 ~ N(0, std 1/r) at the start: r(d + 3κ) parameters.

    It is a chain of rank 2r, [W A2, B2]·[A1; B1], group by group; W A2 (d×r) is the base layer applied to A2's
    columns, which on a convolution also reach across taps, for r·d·κ multiply-adds a step. `a_up` is A2ᵀ, [r, κ].
    peft's GLoRA is another: W∘A + B with A and B as large as W (or vectors), ∘ elementwise, and terms for the bias.
    """

    title: ClassVar[str] = "GLoRA"
    paper: ClassVar[str] = "arXiv 2306.07967"
    equation: ClassVar[str] = "ΔW = α/r · (W A2 A1 + B2 B1)"
    projected: ClassVar[str | None] = "a_up"

    def __init__(self, site: Site, weight: Tensor, spec: GloraSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        rank, self.scale = rank_for(site, spec.rank), spec.scale
        draws = torch.randn(2, rank, site.columns, generator=context.generator(site.name)) / rank
        a_down, b_down = draws.to(weight)
        self.a_down, self.b_down = nn.Parameter(a_down.clone()), nn.Parameter(b_down.clone())
        self.a_up = nn.Parameter(weight.new_zeros(rank, site.columns))
        self.b_up = nn.Parameter(weight.new_zeros(site.rows, rank // site.groups))

    def chain(self) -> Chain:
        return self._chain(self.site.project(self.a_up))

    def _chain(self, w_a2: Tensor) -> Chain:
        halves = [self.site.split_groups(self.a_down), self.site.split_groups(self.b_down)]
        return Chain(torch.cat([w_a2, self.b_up], dim=1), torch.cat(halves, dim=1).flatten(0, 1), self.scale)

    def forward(self, *projected: Tensor) -> tuple[Tensor, Tensor]:
        up, down, scale, core = self._chain(*projected)
        return fold(self.site, up, scale, core), down

    def delta_weight(self, weight: Tensor) -> Tensor:
        """From the given W: the layer's own may have another adapter merged into it."""
        site = self.site
        rows = site.split_groups(site.matricise(weight)) @ site.split_groups(self.a_up.to(weight.dtype)).mT
        a = site.product(rows.flatten(0, 1), self.a_down.to(weight.dtype))
        return site.as_weight(self.scale * (a + site.product(self.b_up, self.b_down).to(weight.dtype)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"down": [self.a_down, self.b_down], "up": [self.a_up, self.b_up]}
