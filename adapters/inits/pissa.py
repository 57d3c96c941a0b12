"""PiSSA (arXiv 2404.02948): the pair starts at the principal part of W."""

from __future__ import annotations

from torch import Tensor

from adapters.anchors import AnchoredSpec, Anchors, Initialisation
from adapters.base import Context
from adapters.low_rank import rank_within
from adapters.sites import Site
from adapters.svd import Decomposer, Svd


class Pissa(Initialisation, name="pissa"):
    """B0 = U1 √(S1/s), A0 = √(S1/s) V1ᵀ of the top r singular values."""

    title = "PiSSA"
    paper = "arXiv 2404.02948"
    equation = "s·B0 A0 = U1 S1 V1ᵀ, the r largest singular values"

    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        count = rank_within(site, spec.rank) // site.groups
        part = self.part(context.decomposer, site.split_groups(site.matricise(weight)), count)
        return split_evenly(part, spec.scale)

    def part(self, decomposer: Decomposer, matrices: Tensor, count: int) -> Svd:
        return decomposer.top(matrices, count)


def split_evenly(part: Svd, scale: float) -> Anchors:
    """U S Vᵀ as s·B0 A0, half of √(S/s) on each side."""
    root = (part.s / scale).sqrt()
    return Anchors((part.u * root[:, None]).flatten(0, 1), (root[..., None] * part.vt).flatten(0, 1))
