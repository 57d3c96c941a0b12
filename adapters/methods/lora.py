"""LoRA (arXiv 2106.09685)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Context, LowRankSpec
from adapters.errors import UserInputError
from adapters.kernels import chain, chain_row_norm2
from adapters.sites import Site


class LoraSpec(LowRankSpec, frozen=True):
    method: Literal["lora"] = "lora"


class Lora(Adapter, spec=LoraSpec):
    """ΔW = s·B A with B = 0 and A ~ N(0, std 1/r) at the start: r(d + κ) parameters.

    The standard deviation is 1/r, as PEFT's "gaussian" and diffusers' SDXL script take it.
    """

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "arXiv 2106.09685"
    equation: ClassVar[str] = "ΔW = α/r · B A"

    def __init__(self, site: Site, weight: Tensor, spec: LowRankSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        if spec.rank % site.groups:
            raise UserInputError(
                f"{site.name} has {site.groups} groups, and rank {spec.rank} cannot be split among them.",
                f"Choose a rank that is a multiple of {site.groups}, or leave this layer out.",
            )
        down = torch.randn(spec.rank, site.columns, generator=context.generator(site.name)) / spec.rank
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(site.rows, spec.rank // site.groups))
        self.scale = spec.scale
        self.dropout = spec.dropout

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        return chain(self.site, F.dropout(x, self.dropout, self.training), self.up, self.down, self.scale)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.site.as_weight(self.scale * self.site.product(self.up, self.down)).to(weight.dtype)

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        return chain_row_norm2(self.site, base_norm2, self.up, self.down, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.up, self.down

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"down": [self.down], "up": [self.up]}
