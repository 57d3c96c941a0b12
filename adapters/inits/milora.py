"""MiLoRA (arXiv 2406.09044): the pair starts at the minor part of W."""

from __future__ import annotations

from torch import Tensor

from adapters.inits.pissa import Pissa
from adapters.svd import Decomposer, Svd


class Milora(Pissa, name="milora"):
    """As PiSSA, from the r smallest singular values: needs an exact decomposition."""

    title = "MiLoRA"
    paper = "arXiv 2406.09044"
    equation = "s·B0 A0 = U S Vᵀ of the r smallest singular values"

    def part(self, decomposer: Decomposer, matrices: Tensor, count: int) -> Svd:
        return decomposer.bottom(matrices, count)
