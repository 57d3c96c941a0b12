"""MiLoRA (arXiv 2406.09044): the pair starts at the minor part of W."""

from __future__ import annotations

from torch import Tensor

from adapters.anchors import AnchoredSpec, Anchors, Initialisation
from adapters.base import Context
from adapters.inits.pissa import split_evenly
from adapters.low_rank import rank_within
from adapters.sites import Site


class Milora(Initialisation, name="milora"):
    """As PiSSA, from the r smallest singular values: needs an exact decomposition."""

    title = "MiLoRA"
    paper = "arXiv 2406.09044"
    equation = "s·B0 A0 = U S Vᵀ of the r smallest singular values"

    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        count = rank_within(site, spec.rank) // site.groups
        return split_evenly(context.decomposer.bottom(site.split_groups(site.matricise(weight)), count), spec.scale)
