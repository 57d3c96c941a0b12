"""LoKr (LyCORIS, arXiv 2309.14859)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.kronecker import Kronecker, factorization, second_shapes, uniform
from adapters.sites import Site


class LokrSpec(LowRankSpec, frozen=True):
    method: Literal["lokr"] = "lokr"
    rank: int = Field(
        default=16,
        ge=1,
        description="Rank of the second factor; it is whole from half its longer side on.",
    )
    factor: int | None = Field(
        default=None, ge=1, description="Blocks that outputs and inputs are split into; unset: the most even split."
    )
    decompose_both: bool = Field(default=False, description="Make the first factor of low rank, too.")
    tucker: bool = Field(default=False, description="On larger kernels: a core with the kernel in the second factor.")


class Lokr(Kronecker, spec=LokrSpec):
    """ΔW = s·w1 ⊗ w2 with d = a1·b1 and c_in/g = a2·b2 split as LyCORIS and PEFT do, and their names and shapes.

    w1 [a1, a2] is w1_a w1_b with decompose_both if r < max(a1, a2)/2. w2 [b1, b2, kh, kw] is whole if
    r ≥ max(b1, b2)/2, else w2_a [b1, r] · w2_b [r, b2·kh·kw], or with `tucker` t2 [r, r, kh, kw] ×1 w2_a [r, b1]
    ×2 w2_b [r, b2]. a1·a2 + b1·b2·kh·kw parameters if both are whole. LyCORIS's start: w2 (or w2_b) is 0, the others
    are U(±1/√fan-in); PEFT zeroes w1 instead unless asked. s = α/r always, as in PEFT: programs that read LoKr files
    take s = 1 where both factors are whole, so an export must multiply it in there.
    """

    title: ClassVar[str] = "LoKr"
    paper: ClassVar[str] = "arXiv 2309.14859"
    equation: ClassVar[str] = "ΔW = α/r · W₁ ⊗ W₂"

    def __init__(self, site: Site, weight: Tensor, spec: LokrSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        a1, b1 = factorization(site.rows, spec.factor)
        a2, b2 = factorization(weight.shape[1], spec.factor)
        low = spec.decompose_both and spec.rank < max(a1, a2) / 2
        shapes = {"w1_a": (a1, spec.rank), "w1_b": (spec.rank, a2)} if low else {"w1": (a1, a2)}
        kind = "full" if spec.rank >= max(b1, b2) / 2 else "tucker" if spec.tucker else "low-rank"
        shapes |= second_shapes(kind, b1, b2, tuple(weight.shape[2:]), spec.rank)
        generator = context.generator(site.name)
        for name, shape in shapes.items():
            start = weight.new_zeros(shape) if name in ("w2", "w2_b") else uniform(shape, generator).to(weight)
            self.register_parameter(name, nn.Parameter(start))

    def terms(self) -> Sequence[Mapping[str, Tensor]]:
        return [{name: getattr(self, name) for name, _ in self.named_parameters()}]
