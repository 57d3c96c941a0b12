"""LoRA-GA (arXiv 2407.05000): the pair starts where its first step is the best that rank 2r can do."""

from __future__ import annotations

from torch import Tensor

from adapters.anchors import AnchoredSpec, Anchors, Initialisation
from adapters.base import Calibration, Context
from adapters.errors import UserInputError
from adapters.low_rank import rank_for
from adapters.sites import Site
from adapters.svd import Decomposer

GAMMA = 16
"""γ of the paper's section 3.3: how large the start is."""


class LoraGa(Initialisation, name="lora-ga"):
    """B0 = c·U[:, :r], A0 = c·Vᵀ[r:2r] of the mean gradient G = U S Vᵀ, c = d^¼/√γ."""

    title = "LoRA-GA"
    paper = "arXiv 2407.05000"
    equation = "B0 = d^¼/√γ · U[:, :r], A0 = d^¼/√γ · Vᵀ[r:2r] of the mean gradient"

    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        rank = rank_for(site, spec.rank)
        limit = site.groups * (min(site.rows // site.groups, site.columns) // 2)
        if rank > limit:
            raise UserInputError(
                f"LoRA-GA starts from 2·{rank} singular vectors of {site.name}'s gradient, which has {2 * limit}.",
                f"Choose a rank of at most {limit}, or give this layer one of its own (targets.overrides).",
            )
        return Anchors(weight.new_zeros(site.rows, rank // site.groups), weight.new_zeros(rank, site.columns))

    def calibration(self, site: Site, spec: AnchoredSpec, anchors: Anchors) -> Calibration:
        return MeanGradient(site, spec, anchors)


class MeanGradient(Calibration):
    """The mean gradient, summed whole: adapters.calibrate bounds how many layers are summed at once."""

    def __init__(self, site: Site, spec: AnchoredSpec, anchors: Anchors) -> None:
        self.site, self.anchors, self.draws = site, anchors, spec.calibration_draws
        self.count = spec.rank // site.groups
        self.sum: Tensor | None = None

    def observe(self, gradient: Tensor) -> None:
        self.sum = gradient if self.sum is None else self.sum + gradient

    def finish(self) -> None:
        assert self.sum is not None
        gradient = self.site.split_groups(self.site.matricise(self.sum))
        u, _, vt = Decomposer().top(gradient, 2 * self.count)
        gain = self.site.rows**0.25 / GAMMA**0.5
        self.anchors.up.copy_((gain * u[..., : self.count]).flatten(0, 1))
        self.anchors.down.copy_((gain * vt[:, self.count :]).flatten(0, 1))
        self.sum = None
