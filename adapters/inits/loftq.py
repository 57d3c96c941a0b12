"""LoftQ (arXiv 2310.08659): the pair starts at what quantisation lost."""

from __future__ import annotations

from torch import Tensor

from adapters.anchors import AnchoredSpec, Anchors, Initialisation
from adapters.base import Context
from adapters.errors import UserInputError
from adapters.low_rank import rank_within
from adapters.quantized import Quantized
from adapters.sites import Site
from adapters.svd import Unread


class LoftQ(Initialisation, name="loftq"):
    """s·B0 A0 = the residual that the quantised layer carries (adapters.quantized), W ≈ Q + s·B0 A0.

    The residual belongs to the base: what is learnt is ΔW = s(B A − B0 A0) as with every start, so that the file
    fits the base in full precision, too, and merges into it.
    """

    title = "LoftQ"
    paper = "arXiv 2310.08659"
    equation = "s·B0 A0 = the r largest singular values of W − Q(W − s·B0 A0), in turn"

    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        rank = rank_within(site, spec.rank)
        module = site.module
        if weight.is_meta or isinstance(context.decomposer, Unread):
            return Anchors(weight.new_zeros(site.rows, rank // site.groups), weight.new_zeros(rank, site.columns))
        if not isinstance(module, Quantized) or module.residual_up is None or module.residual_down is None:
            raise UserInputError(
                f"loftq starts at what quantisation lost, and {site.name} is not quantised.",
                "Choose quantization=nf4 (or int8, fp8), or another init.",
            )
        if len(module.residual_down) != rank:
            raise UserInputError(
                f"The residual of {site.name} has rank {len(module.residual_down)}, and its adapter rank {rank}.",
                "loftq takes one rank for all layers: leave overrides of the rank out.",
            )
        root = spec.scale**0.5
        return Anchors(module.residual_up.to(weight) / root, module.residual_down.to(weight) / root)
