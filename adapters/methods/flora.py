"""FLoRA (arXiv 2405.14739)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.sites import Site
from adapters.tucker import Tucker


class FloraSpec(LowRankSpec, frozen=True):
    method: Literal["flora"] = "flora"
    kernel_modes: bool = Field(
        default=False, description="Give a kernel's rows and columns factors too, instead of keeping them in the core."
    )


class Flora(Tucker, spec=FloraSpec):
    """ΔW = s·A G Bᵀ with a core G [r, r] of its own for each layer; on convolutions ΔW = s·G ×1 A ×2 B.

    G = 0 and the factors N(0, 0.02) at the start. r(d + κ) + r² parameters on a Linear layer; on a convolution
    without groups r(d + c_in) + r²·kh·kw, and with kernel_modes r(d + c_in) + kh·r_h + kw·r_w + r²·r_h·r_w with
    r_h = min(r, kh) and r_w = min(r, kw). Groups divide the widths of A and of G, as the conv rule has it.
    """

    title: ClassVar[str] = "FLoRA"
    paper: ClassVar[str] = "arXiv 2405.14739"
    equation: ClassVar[str] = "ΔW = α/r · G ×₁ A ×₂ B (×₃ C ×₄ D)"

    def __init__(self, site: Site, weight: Tensor, spec: FloraSpec, context: Context) -> None:
        generator = context.generator(site.name)

        def factor(name: str, shape: tuple[int, ...]) -> nn.Parameter:
            return nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(weight))

        super().__init__(site, weight, spec, context, factor=factor, kernel_modes=spec.kernel_modes)
