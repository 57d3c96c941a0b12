"""ΔW as a small core between factors for outputs and inputs (and kernel rows and columns): LoTR, FLoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.low_rank import Chain, LowRank, rank_for
from adapters.sites import Site


class TuckerFactors(NamedTuple):
    """ΔW[o, i, …] = Σ_pq up[o, p]·core[p, q, …]·down[q, i], within each group."""

    up: Tensor
    """[d, r/g]"""
    core: Tensor
    """[r, r/g, kh, kw]; [r, r/g] on a Linear layer."""
    down: Tensor
    """[r, c_in/g]"""


def fold_core(site: Site, core: Tensor, down: Tensor) -> Tensor:
    """The core and the input factor as one down factor of the chain, [r, κ]."""
    split = torch.einsum("gpq...,gqi->gpi...", site.split_groups(core), site.split_groups(down))
    return split.flatten(0, 1).flatten(1)


def tucker(site: Site, x: Tensor, factors: TuckerFactors) -> Tensor:
    """ΔW x as 1×1 → k×k → 1×1: only the r-wide middle has the layer's kernel, stride, padding and dilation.

    N_in·r·c_in/g + N_out·r(r/g)·k² + N_out·d·r/g multiply-adds. Factors are cast to x's dtype.
    """
    up, core, down = (factor.to(x.dtype) for factor in factors)
    return site.apply_up(site.apply_core(site.apply_up(x, down), core, site.groups), up)


def is_cheaper(site: Site, x: Tensor, y: Tensor, rank: int) -> bool:
    """Whether 1×1 → k×k takes fewer multiply-adds than r whole kernels: not over few channels (conv_in), say."""
    width, area = site.shape[1], site.shape[2:].numel()
    n_in, n_out = (t.numel() // t.shape[site.channel_axis] for t in (x, y))
    return n_in * width + n_out * area * rank // site.groups < n_out * area * width


class Tucker(LowRank):
    """ΔW = s·core ×1 up ×2 down, and on kernels, where wished, ×3 tall ×4 wide. The core is 0 at the start.

    `tall` [kh, min(r, kh)] and `wide` [kw, min(r, kw)] fold into the core. Folded with `down` as well it is the
    chain that merging, DoRA's norm and export see.
    """

    def __init__(
        self,
        site: Site,
        weight: Tensor,
        spec: LowRankSpec,
        context: Context,
        *,
        factor: Callable[[str, tuple[int, ...]], nn.Parameter],
        kernel_modes: bool,
    ) -> None:
        """`factor` makes the factor of a name and a shape, or takes a shared one."""
        super().__init__(site, weight, spec, context)
        self.rank, self.scale = rank_for(site, spec.rank), spec.scale
        narrow, kernel = self.rank // site.groups, tuple(weight.shape[2:])
        self.up = factor("up", (site.rows, narrow))
        self.down = factor("down", (self.rank, weight.shape[1]))
        self.tall, self.wide = None, None
        if kernel_modes and max(kernel, default=1) > 1:
            modes = tuple(min(self.rank, size) for size in kernel)
            self.tall, self.wide = (
                factor(name, pair) for name, pair in zip(("tall", "wide"), zip(kernel, modes, strict=True), strict=True)
            )
            kernel = modes
        self.core = nn.Parameter(weight.new_zeros(self.rank, narrow, *kernel))

    def tucker(self) -> TuckerFactors:
        """The factors as they are now, s and the kernel factors in the core."""
        core = self.core
        if self.tall is not None and self.wide is not None:
            core = torch.einsum("pqab,ka,lb->pqkl", core, self.tall, self.wide)
        return TuckerFactors(self.up, core if self.scale == 1.0 else self.scale * core, self.down)

    def chain(self) -> Chain:
        up, core, down = self.tucker()
        if core[0, 0].numel() == 1:
            return Chain(up, down, core=core.flatten(1))
        return Chain(up, fold_core(self.site, core, down))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        if not is_cheaper(self.site, x, y_base, self.rank):
            return super().delta(x, y_base)
        return tucker(self.site, F.dropout(x, self.dropout, self.training), self.tucker())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        kernel = [factor for factor in (self.tall, self.wide) if factor is not None]
        groups = {"down": [self.down], "up": [self.up], "core": [self.core]}
        return {**groups, "kernel": kernel} if kernel else groups
