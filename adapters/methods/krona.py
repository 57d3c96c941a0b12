"""KronA (arXiv 2212.10650)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.kronecker import Kronecker, Second, factorization, second_shapes, uniform
from adapters.sites import Site


class KronaSpec(LowRankSpec, frozen=True):
    method: Literal["krona"] = "krona"
    rank: int = Field(default=16, ge=1, le=4096, description="Rank of the second factor, where it is not whole.")
    factor: int = Field(
        default=16, ge=1, description="Blocks that outputs and inputs are split into: the size of the first factor."
    )
    terms: int = Field(default=1, ge=1, le=64, description="How many Kronecker products are summed.")
    second: Second = Field(
        default="full", description="The second factor: full, low-rank, or tucker (on larger kernels; else low-rank)."
    )


class Krona(Kronecker, spec=KronaSpec):
    """ΔW = s·Σ_t A_t ⊗ B_t with A [a1, a2] ~ N(0, std 1/a1) and B [b1, b2, kh, kw] = 0 at the start.

    terms·(a1·a2 + b1·b2·kh·kw) parameters; a1 and a2 are `factor` where that divides the channels. The default of 16
    has 3.87 M on SDXL's attention layers (published: 3.8 M). A low-rank or Tucker B is LoKr's, with w2_b = 0 and the
    others U(±1/√fan-in). s = α/r, 1 unless alpha is set. Factors have LoKr's names, with the terms in front.
    """

    title: ClassVar[str] = "KronA"
    paper: ClassVar[str] = "arXiv 2212.10650"
    equation: ClassVar[str] = "ΔW = α/r · Σₜ Aₜ ⊗ Bₜ"

    def __init__(self, site: Site, weight: Tensor, spec: KronaSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        a1, b1 = factorization(site.rows, spec.factor)
        a2, b2 = factorization(weight.shape[1], spec.factor)
        self.count = spec.terms
        generator = context.generator(site.name)
        self.w1 = nn.Parameter((torch.randn(self.count, a1, a2, generator=generator) / a1).to(weight))
        for name, shape in second_shapes(spec.second, b1, b2, tuple(weight.shape[2:]), spec.rank).items():
            if name in ("w2", "w2_b"):
                start = weight.new_zeros(self.count, *shape)
            else:
                start = torch.stack([uniform(shape, generator) for _ in range(self.count)]).to(weight)
            self.register_parameter(name, nn.Parameter(start))

    def terms(self) -> Sequence[Mapping[str, Tensor]]:
        return [{name: getattr(self, name)[t] for name, _ in self.named_parameters()} for t in range(self.count)]
