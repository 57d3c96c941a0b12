"""SoRA (arXiv 2311.11696)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.low_rank import Chain, LowRank, rank_for
from adapters.sites import Site


class SoraSpec(LowRankSpec, frozen=True):
    method: Literal["sora"] = "sora"
    gate_learning_rate: float = Field(default=0.1, gt=0, description="η of the gates' own proximal steps.")
    sparsity: float = Field(default=1e-3, ge=0, description="λ: each step moves every gate by ηλ towards 0.")


class Sora(LowRank, spec=SoraSpec):
    """ΔW = s·B diag(g) A with gates g [r] that fall to exactly 0: r(d + κ) + r parameters.

    g starts at 1, B at 0. The optimizer trains A and B alone; a gate takes a proximal gradient step after each of
    its steps (section 3.2): g ← sign(h)·max(|h| − ηλ, 0) with h = g − η·∂loss/∂g. That has no momentum and no decay, so
    nothing but g is needed to go on. A gate at 0 may open again while the factors behind it are still there; the
    finished file leaves those out, but for a grouped convolution, whose groups may lose different ranks. Gates that an
    average of the weights is kept of come close to 0 only.
    """

    title: ClassVar[str] = "SoRA"
    paper: ClassVar[str] = "arXiv 2311.11696"
    equation: ClassVar[str] = "ΔW = α/r · B diag(g) A, g ← prox(g − η ∂g)"
    prunable: ClassVar[Mapping[str, int]] = {"up": 1, "down": 0, "gate": 0}

    def __init__(self, site: Site, weight: Tensor, spec: SoraSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        rank = rank_for(site, spec.rank)
        self.scale, self.rate, self.sparsity = spec.scale, spec.gate_learning_rate, spec.sparsity
        down = torch.randn(rank, site.columns, generator=context.generator(site.name)) / rank
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(site.rows, rank // site.groups))
        self.gate = nn.Parameter(weight.new_ones(rank))

    def chain(self) -> Chain:
        return Chain(self.up, self.down, self.scale, self.gate)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Without the gates, which `settled` trains."""
        return {"down": [self.down], "up": [self.up]}

    def settled(self, gradients: Mapping[str, Tensor], phase: str) -> dict[str, Tensor]:
        if "gate" not in gradients:
            return {}
        moved = self.gate - self.rate * gradients["gate"]
        stepped = moved.sign() * (moved.abs() - self.rate * self.sparsity).clamp_min(0)
        # an overflow in fp16 makes the optimizer skip its step; these gates then stay where they are, too
        return {"gate": torch.where(gradients["gate"].isfinite().all(), stepped, self.gate)}

    def pruned(self) -> dict[str, Tensor]:
        whole = self.state_dict()
        if self.site.groups > 1:
            return whole
        kept = self.gate.detach() != 0
        return {"down": whole["down"][kept], "up": whole["up"][:, kept], "gate": whole["gate"][kept]}
