"""DoRA (arXiv 2402.09353): a magnitude of its own for each output row, over any method with a row norm."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Context, LowRankSpec
from adapters.kernels import row_norm2
from adapters.methods.lora import Lora
from adapters.sites import Site


class DoraSpec(LowRankSpec, frozen=True):
    method: Literal["dora"] = "dora"


def _norm(norm2: Tensor) -> Tensor:
    """√norm2, kept off 0: a row of zeros (a dead channel) then gives 0, not NaN."""
    return norm2.clamp_min(torch.finfo(norm2.dtype).tiny).sqrt()


class Dora(Adapter, spec=DoraSpec):
    """W' = (m/c) ⊙ (W + ΔW), c_i = ‖W_i + ΔW_i‖, m = ‖W_i‖ at the start: the inner method's parameters + d.

    ΔW is the inner method's; another inner_type makes another DoRA (DVoRA). c is detached (section 4.3 of the
    paper), from the inner method's Gram form, in the factors' precision and never under autocast. m takes the
    same path through ‖W‖², so m/c is exactly 1 at the start and the delta exactly 0.
    """

    title: ClassVar[str] = "DoRA"
    paper: ClassVar[str] = "arXiv 2402.09353"
    equation: ClassVar[str] = "W' = m ⊙ (W + α/r · B A) / ‖W + α/r · B A‖ per output row"
    inner_type: ClassVar[type[Adapter]] = Lora

    base_norm2: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: LowRankSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.inner = self.inner_type(site, weight, spec, context)
        self.register_buffer("base_norm2", row_norm2(site.matricise(weight)), persistent=False)
        self.magnitude = nn.Parameter(self.base_norm2.sqrt())

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        """(W' − W)x = u + (m/c − 1)·v, with u = ΔW x and v = (W + ΔW)x = y0 − bias + u.

        In this order m/c − 1 keeps its digits in bf16, and v is the only output-sized tensor saved.
        """
        u = self.inner.delta(x, y_base)
        bias = self.site.bias
        v = u + (y_base if bias is None else y_base - self.site.per_output(bias).to(y_base.dtype))
        return u + self.site.per_output(self.gain_minus_one()).to(v.dtype) * v

    def gain_minus_one(self) -> Tensor:
        """m/c − 1, [d]: exactly 0 at the start."""
        with torch.no_grad(), torch.autocast(self.magnitude.device.type, enabled=False):
            c = _norm(self.inner.row_norm2(self.base_norm2))
        return self.magnitude / c - 1

    def delta_weight(self, weight: Tensor) -> Tensor:
        """From a materialised W + ΔW, whose norm needs no Gram form."""
        inner = self.inner.delta_weight(weight)
        moved = self.site.matricise(weight + inner)
        gain = self.magnitude.to(weight.dtype) / _norm(row_norm2(moved)).detach()
        return inner + self.site.as_weight((gain - 1)[:, None] * moved)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**self.inner.parameter_groups(), "magnitude": [self.magnitude]}

    def regulariser(self) -> Tensor | None:
        return self.inner.regulariser()

    def on_backward(self) -> None:
        self.inner.on_backward()

    def on_step(self, step: int) -> None:
        self.inner.on_step(step)
