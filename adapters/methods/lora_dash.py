"""LoRA-Dash (arXiv 2409.01035)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.anchors import AnchoredSpec
from adapters.base import Context
from adapters.kernels import fold
from adapters.layer import master
from adapters.low_rank import Chain, rank_for
from adapters.methods.lora import Lora
from adapters.sites import Site
from adapters.svd import exact


class LoraDashSpec(AnchoredSpec, frozen=True):
    method: Literal["lora-dash"] = "lora-dash"
    start_step: int = Field(default=100, ge=1, description="Optimizer step t after which the directions are chosen.")
    directions: int = Field(default=8, ge=1, le=512, description="Singular directions of W that are trained as well.")
    epsilon: float = Field(default=1e-6, gt=0, description="ε of the ranking |uᵀ ΔW v|/(σ + ε).")
    relative_epsilon: bool = Field(
        default=False, description="Take ε times the largest σ: keeps the smallest σ from winning every time."
    )


class LoraDash(Lora, spec=LoraDashSpec):
    """ΔW = s·B A + Σ Δσ_i ū_i v̄_iᵀ over n task-specific directions of W (section 4): r(d + κ) + n parameters.

    After optimizer step t, once, W's own singular directions are ranked by |u_iᵀ ΔW v_i|/(σ_i + ε) and the first n are
    written into buffers, which are zeros until then: the second term is then exactly 0. It folds into a LoRA of
    rank r + n. A layer of fewer than n singular values takes them all. A grouped convolution's n are split evenly
    among its groups, as its rank is.
    """

    title: ClassVar[str] = "LoRA-Dash"
    paper: ClassVar[str] = "arXiv 2409.01035"
    equation: ClassVar[str] = "ΔW = α/r · B A + Σ Δσᵢ ūᵢ v̄ᵢᵀ"

    left: Tensor
    right: Tensor
    chosen: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: LoraDashSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.start_step, self.epsilon, self.relative = spec.start_step, spec.epsilon, spec.relative_epsilon
        split = rank_for(site, spec.directions) // site.groups
        each = min(split, site.rows // site.groups, site.columns)
        self.core = nn.Parameter(weight.new_zeros(each * site.groups))
        self.register_buffer("left", weight.new_zeros(site.rows, each))
        self.register_buffer("right", weight.new_zeros(each * site.groups, site.columns))
        unset = torch.full((site.groups, each), -1, dtype=torch.int64, device=weight.device)
        self.register_buffer("chosen", unset)

    def chain(self) -> Chain:
        """[s·B, ū Δσ] and [A; v̄], stacked group by group."""
        pair = super().chain()
        up = torch.cat([pair.scale * pair.up, fold(self.site, self.left, core=self.core)], dim=1)
        halves = [self.site.split_groups(pair.down), self.site.split_groups(self.right)]
        return Chain(up, torch.cat(halves, dim=1).flatten(0, 1))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**super().parameter_groups(), "core": [self.core]}

    def on_step(self, step: int) -> None:
        if step == self.start_step:
            self._choose()

    @torch.no_grad()
    def _choose(self) -> None:
        """The switch: an exact decomposition of W; ΔW is met through its factors only."""
        site, each = self.site, self.chosen.shape[1]
        matrices = site.split_groups(site.matricise(master(site.weight)))
        whole = exact(matrices)  # not kept on disk: all of U and V are as large as the base
        pair = super().chain()
        up, down = site.split_groups(pair.scale * pair.up), site.split_groups(pair.down)
        diagonal = ((whole.u.mT @ up) * (whole.vt @ down.mT)).sum(-1)
        epsilon = self.epsilon * whole.s[:, :1] if self.relative else self.epsilon
        picked = (diagonal.abs() / (whole.s + epsilon)).topk(each).indices
        self.chosen.copy_(picked)
        self.left.copy_(whole.u.gather(2, picked[:, None].expand(-1, whole.u.shape[1], -1)).flatten(0, 1))
        self.right.copy_(whole.vt.gather(1, picked[..., None].expand(-1, -1, whole.vt.shape[2])).flatten(0, 1))
