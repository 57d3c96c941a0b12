"""OLoRA (arXiv 2406.01775): the pair starts at the QR decomposition of W."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.anchors import AnchoredSpec, Anchors, Initialisation
from adapters.base import Context
from adapters.low_rank import rank_within
from adapters.sites import Site


class Olora(Initialisation, name="olora"):
    """B0 = the first r columns of Q, A0 = the first r rows of R, of W = Q R."""

    title = "OLoRA"
    paper = "arXiv 2406.01775"
    equation = "B0 = Q[:, :r], A0 = R[:r] of W = Q R"

    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        count = rank_within(site, spec.rank) // site.groups
        matrices = site.split_groups(site.matricise(weight))
        # the first r columns of Q span those of W: a thin QR of them alone gives the same Q_r, and R_r = Q_rᵀ W
        q = torch.linalg.qr(matrices[..., :count]).Q
        return Anchors(q.flatten(0, 1), (q.mT @ matrices).flatten(0, 1))
