"""LoHa (arXiv 2108.06098, section 2; LyCORIS, arXiv 2309.14859)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.low_rank import Chain, LowRank
from adapters.sites import Site


class LohaSpec(LowRankSpec, frozen=True):
    method: Literal["loha"] = "loha"
    rank: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Inner dimension r of each pair; the product has rank r² and costs like it.",
    )
    tucker: bool = Field(
        default=False, description="On larger kernels: a core with the kernel in each pair (fewer parameters)."
    )


class Loha(LowRank, spec=LohaSpec):
    """ΔW = s·(B1 A1)∘(B2 A2), run as a chain of rank r²: ΔW is never built.

    Row by row B1 and B2 make an up factor [d, r²], and A1 and A2 a down factor [r², κ] (Khatri-Rao products), so a
    step costs N·r²(d + κ) multiply-adds and saves r² numbers for each token: more than the layer itself from
    r² = dκ/(d + κ) on (r = 25 on a 1280×1280 layer). A magnitude over it costs r²·dκ a step. 2r(d + κ) parameters.
    Names, shapes and the start are LyCORIS's (w2_a = 0, w1_a ~ N(0, 0.1), the others N(0, 1)).

    With `tucker` (Proposition 3 of the paper) A_i is a core t_i [r, r, kh, kw] ×2 w_i_b [r, c_in/g], w_i_a is
    [r, d]: 2r(d + c_in/g) + 2r²·kh·kw parameters. Groups share A1 and A2: each output row sees its own group's inputs.
    """

    title: ClassVar[str] = "LoHa"
    paper: ClassVar[str] = "arXiv 2108.06098"
    equation: ClassVar[str] = "ΔW = α/r · (B₁A₁) ∘ (B₂A₂)"

    def __init__(self, site: Site, weight: Tensor, spec: LohaSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.scale, rank = spec.scale, spec.rank
        kernel = tuple(weight.shape[2:])
        self.tucker = spec.tucker and max(kernel, default=1) > 1
        generator = context.generator(site.name)

        def normal(*shape: int, std: float = 1.0) -> nn.Parameter:
            return nn.Parameter((std * torch.randn(shape, generator=generator)).to(weight))

        up = (rank, site.rows) if self.tucker else (site.rows, rank)
        down = (rank, weight.shape[1] if self.tucker else site.columns)
        self.w1_a, self.w1_b = normal(*up, std=0.1), normal(*down)
        self.w2_a, self.w2_b = nn.Parameter(weight.new_zeros(up)), normal(*down)
        # the cores keep the size of what they multiply, whatever the rank
        self.t1 = normal(rank, rank, *kernel, std=rank**-0.5) if self.tucker else None
        self.t2 = normal(rank, rank, *kernel, std=rank**-0.5) if self.tucker else None

    def chain(self) -> Chain:
        (up1, down1), (up2, down2) = _pair(self.w1_a, self.w1_b, self.t1), _pair(self.w2_a, self.w2_b, self.t2)
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None] * down2[None]).flatten(0, 1)
        return Chain(up, down.repeat(self.site.groups, 1) if self.site.groups > 1 else down, self.scale)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"down": [self.w1_b, self.w2_b], "up": [self.w1_a, self.w2_a]}
        cores = [core for core in (self.t1, self.t2) if core is not None]
        return {**groups, "core": cores} if cores else groups


def _pair(up: Tensor, down: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """[d, r] and [r, κ] of one pair, with a core or without."""
    if core is None:
        return up, down
    return up.mT, torch.einsum("pq...,qi->pi...", core, down).flatten(1)
