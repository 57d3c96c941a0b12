"""LoTR (arXiv 2402.01376)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.sites import Site
from adapters.tucker import Tucker


class LotrSpec(LowRankSpec, frozen=True):
    method: Literal["lotr"] = "lotr"
    share: Literal["group", "layer"] = Field(
        default="group",
        description="Who has the outer factors: all layers of a shape together, or each layer its own.",
    )


class Lotr(Tucker, spec=LotrSpec):
    """ΔW_l = s·L M_l R: a core M_l [r, r] for each layer between factors that layers of one shape share.

    M = 0 and L, R ~ N(0, 1) at the start. A group of n Linear layers has r(d + k) + n·r² parameters. On
    convolutions (an extension of the paper) ΔW_l = s·M_l ×1 U1 ×2 U2 ×3 U3 ×4 U4 with U1 … U4 shared: for n layers
    without groups r(d + c_in) + kh·r_h + kw·r_w + n·r²·r_h·r_w, r_h = min(r, kh) and r_w = min(r, kw); a 1×1 kernel
    has no U3 and U4. Layers of another component or rank do not share.
    """

    title: ClassVar[str] = "LoTR"
    paper: ClassVar[str] = "arXiv 2402.01376"
    equation: ClassVar[str] = "ΔW = α/r · L M R, L and R shared by layers of one shape"

    def __init__(self, site: Site, weight: Tensor, spec: LotrSpec, context: Context) -> None:
        generator = context.generator(site.name)
        size = "x".join(map(str, weight.shape))
        component = site.name.split(".", 1)[0]  # each has a learning rate of its own
        group = f"lotr:{component}:{site.kind}:{size}:{site.groups}:{spec.rank}:{weight.dtype}"

        def factor(name: str, shape: tuple[int, ...]) -> nn.Parameter:
            if spec.share == "layer":
                return nn.Parameter(torch.randn(shape, generator=generator).to(weight))
            return context.shared(f"{group}:{name}", lambda own: torch.randn(shape, generator=own).to(weight))

        super().__init__(site, weight, spec, context, factor=factor, kernel_modes=True)
