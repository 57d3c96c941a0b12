"""LoRA-GA (arXiv 2407.05000): the pair starts where its first step is the best that rank 2r can do."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adapters.anchors import AnchoredSpec, Anchors, Initialisation
from adapters.base import Calibration, Context
from adapters.low_rank import rank_within
from adapters.sites import Site
from adapters.svd import OVERSAMPLING

GAMMA = 16
"""γ of the paper's section 3.3: how large the start is."""


class LoraGa(Initialisation, name="lora-ga"):
    """B0 = c·U[:, :r], A0 = c·Vᵀ[r:2r] of the mean gradient G = U S Vᵀ, c = d^¼/√γ."""

    title = "LoRA-GA"
    paper = "arXiv 2407.05000"
    equation = "B0 = d^¼/√γ · U[:, :r], A0 = d^¼/√γ · Vᵀ[r:2r] of the mean gradient"

    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        rank = rank_within(site, 2 * spec.rank) // 2
        return Anchors(weight.new_zeros(site.rows, rank // site.groups), weight.new_zeros(rank, site.columns))

    def calibration(self, site: Site, spec: AnchoredSpec, anchors: Anchors) -> Calibration:
        return MeanGradient(site, spec, anchors)


class MeanGradient(Calibration):
    """The top 2r singular vectors of the mean gradient, from sketches: no d×κ sum is kept.

    The same batches are seen in each pass, so the passes are the steps of one randomised decomposition
    (Halko et al., arXiv 0909.4061, alg. 4.4 and 5.1): Y = GΩ, then Z = GᵀQ, then Y = G Q', and at last Z.
    """

    passes: ClassVar[int] = 4

    def __init__(self, site: Site, spec: AnchoredSpec, anchors: Anchors) -> None:
        self.site, self.anchors, self.draws = site, anchors, spec.calibration_draws
        self.count = 2 * spec.rank // site.groups
        self.number, self.sum = 0, torch.zeros(())
        width = min(self.count + OVERSAMPLING, site.rows // site.groups, site.columns)
        generator = torch.Generator().manual_seed(0)
        self.basis = torch.randn(site.groups, site.columns, width, generator=generator).to(anchors.up)

    def observe(self, number: int, gradient: Tensor) -> None:
        matrices = self.site.split_groups(self.site.matricise(gradient))
        if number != self.number:
            self.basis, self.sum, self.number = torch.linalg.qr(self.sum).Q, torch.zeros(()), number
        sketch = (matrices.mT if number % 2 else matrices) @ self.basis
        self.sum = sketch if self.sum.ndim == 0 else self.sum + sketch

    def finish(self) -> None:
        """The last pass gave Z = GᵀQ, so G ≈ Q Zᵀ."""
        u, _, vt = torch.linalg.svd(self.sum.mT, full_matrices=False)
        half, gain = self.count // 2, (self.site.rows**0.25) / GAMMA**0.5
        self.anchors.up.copy_((gain * (self.basis @ u)[..., :half]).flatten(0, 1))
        self.anchors.down.copy_((gain * vt[:, half : 2 * half]).flatten(0, 1))
