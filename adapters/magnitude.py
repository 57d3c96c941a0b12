"""A magnitude of its own for each output row (DoRA, arXiv 2402.09353), over any method with a row norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Calibration, Context, GradientPair
from adapters.errors import UserInputError
from adapters.kernels import row_norm2
from adapters.sites import Site


def _norm(norm2: Tensor) -> Tensor:
    """√norm2, kept off 0: a row of zeros (a dead channel) then gives 0, not NaN."""
    return norm2.clamp_min(torch.finfo(norm2.dtype).tiny).sqrt()


def gain_minus_one(magnitude: Tensor, norm2: Tensor) -> Tensor:
    """m/c − 1 from m and c², of any one shape."""
    return magnitude / _norm(norm2) - 1


class Magnitude(Adapter):
    """W' = (m/c) ⊙ (W + ΔW), c_i = ‖W_i + ΔW_i‖, m = ‖W_i‖ at the start: the inner method's parameters + d.

    ΔW is the inner method's; another inner_type makes another DoRA (DVoRA). c is detached (section 4.3 of the
    paper), from the inner method's Gram form, in the factors' precision and never under autocast. m takes the
    same path through ‖W‖², so m/c is exactly 1 at the start and the delta exactly 0.
    """

    inner_type: ClassVar[type[Adapter]]
    inner: Adapter
    base_norm2: Tensor
    staged_gain: Tensor | None = None
    """m/c − 1 of this forward pass, computed for many layers at once (adapters.bank)."""

    def __init__(self, site: Site, weight: Tensor, spec: AdapterSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.inner = self.inner_type(site, weight, spec, context)
        self.register_buffer("base_norm2", row_norm2(site.matricise(weight)), persistent=False)
        self.magnitude = nn.Parameter(self.base_norm2.sqrt())

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        """(W' − W)x = u + (m/c − 1)·v, with u = ΔW x and v = (W + ΔW)x = y0 − bias + u.

        In this order m/c − 1 keeps its digits in bf16, and v is the only output-sized tensor saved.
        """
        u = self.inner.delta(x, y_base)
        v = u + self.site.without_bias(y_base)
        return u + self.site.per_output(self.gain_minus_one()).to(v.dtype) * v

    def gain_minus_one(self) -> Tensor:
        """m/c − 1, [d]: exactly 0 at the start."""
        if self.staged_gain is not None:
            return self.staged_gain
        with torch.no_grad(), torch.autocast(self.magnitude.device.type, enabled=False):
            norm2 = self.inner.row_norm2(self.base_norm2)
        return gain_minus_one(self.magnitude, norm2)

    def delta_weight(self, weight: Tensor) -> Tensor:
        """From a materialised W + ΔW, whose norm needs no Gram form."""
        inner = self.inner.delta_weight(weight)
        moved = self.site.matricise(weight + inner)
        gain = self.magnitude.to(weight.dtype) / _norm(row_norm2(moved)).detach()
        return inner + self.site.as_weight((gain - 1)[:, None] * moved)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**self.inner.parameter_groups(), "magnitude": [self.magnitude]}

    def gradient_pair(self) -> GradientPair | None:
        if self.inner.gradient_pair() is not None:
            raise UserInputError(
                "LoRA-Pro's projection holds for a weight that moves by its factors alone, not under a magnitude.",
                "Use it without DoRA, or DoRA without it.",
            )
        return None

    def calibrations(self) -> Sequence[Calibration]:
        return self.inner.calibrations()

    def pruned(self) -> dict[str, Tensor]:
        return self.state_dict() | {f"inner.{name}": tensor for name, tensor in self.inner.pruned().items()}

    def regulariser(self) -> Tensor | None:
        return self.inner.regulariser()

    def on_backward(self) -> None:
        self.inner.on_backward()

    @classmethod
    def phase(cls, adapters: Sequence[Magnitude], step: int) -> str:
        return cls.inner_type.phase([adapter.inner for adapter in adapters], step)

    def settled(self, gradients: Mapping[str, Tensor], phase: str) -> dict[str, Tensor]:
        own = {name.removeprefix("inner."): g for name, g in gradients.items() if name.startswith("inner.")}
        return {f"inner.{name}": value for name, value in self.inner.settled(own, phase).items()}

    @classmethod
    def on_step_all(cls, adapters: Sequence[Magnitude], step: int) -> None:
        cls.inner_type.on_step_all([adapter.inner for adapter in adapters], step)


@cache
def magnitude_over(inner: type[Adapter]) -> type[Magnitude]:
    """The class that puts a magnitude over `inner`.

    Raises:
        UserInputError: the method offers no row norm.
    """
    if inner.row_norm2 is Adapter.row_norm2:
        raise UserInputError(
            f"{inner.title} offers no row norm, so a magnitude cannot be put over it.", "Leave adapter.magnitude out."
        )
    members = {
        "inner_type": inner,
        "title": f"DoRA over {inner.title}",
        "paper": inner.paper,
        "equation": inner.equation,
        "depends_on_steps": inner.depends_on_steps,
        "resume_only": frozenset(f"inner.{name}" for name in inner.resume_only),
        "prunable": {f"inner.{name}": axis for name, axis in inner.prunable.items()},
    }
    return type(f"MagnitudeOver{inner.__name__}", (Magnitude,), members)
