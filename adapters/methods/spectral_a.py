"""Spectral-A, the additive form of Spectral Adapter (arXiv 2405.13952)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context
from adapters.columns import Spectral, SpectralSpec
from adapters.low_rank import Chain
from adapters.sites import Site


class SpectralASpec(SpectralSpec, frozen=True):
    method: Literal["spectral-a"] = "spectral-a"
    learn_sigma: bool = Field(default=False, description="Learn the singular values, too, as the official code does.")
    confined: bool = Field(
        default=False,
        description="Keep A_U and A_V within their own columns: subjects on other slots are then orthogonal, exactly.",
    )
    normalised: bool = Field(
        default=True, description="Learn A_U·S and A_V·S, so that the steps of large singular values are not larger."
    )


class SpectralA(Spectral, spec=SpectralASpec):
    """W' = [U1 + A_U, U2] S [V1 + A_V, V2]ᵀ with A_U = A_V = 0 at the start: r(d + κ) parameters (+ r with sigma).

    As a chain of rank 2r (ΔS is δ): ΔW = [A_U (S1+δ) + U1 δ, (U1+A_U)(S1+δ)] · [V1ᵀ; A_Vᵀ]. `normalised` learns
    Ã = A·S1 in A's place: Adam would otherwise move column i by lr·σ_i·√d in its first step.

    `confined` learns A_U = U1 C_U and A_V = V1 C_V instead, 2r² parameters: ΔW = U1 [(I + C_U) S (I + C_V)ᵀ − S] V1ᵀ,
    and ⟨ΔW_i, ΔW_j⟩ = 0 for subjects on disjoint columns. A free A promises no such thing: only that the sum of such
    changes has no cross terms.
    """

    title: ClassVar[str] = "Spectral-A"
    paper: ClassVar[str] = "arXiv 2405.13952"
    equation: ClassVar[str] = "W' = [U1 + A_U, U2] S [V1 + A_V, V2]ᵀ"

    def __init__(self, site: Site, weight: Tensor, spec: SpectralASpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.normalised = spec.normalised
        width = self.left.shape[1]
        self.confined = spec.confined
        self.up = nn.Parameter(weight.new_zeros(spec.rank, width)) if spec.confined else self.zeros_like(self.left)
        self.down = nn.Parameter(weight.new_zeros(spec.rank, width)) if spec.confined else self.zeros_like(self.right)
        self.delta_sigma = self.zeros_like(self.sigma) if spec.learn_sigma else None

    def chain(self) -> Chain:
        return self._confined_chain() if self.confined else self._free_chain()

    def _confined_chain(self) -> Chain:
        sigma = self.sigma.unflatten(0, (self.site.groups, 1, -1))
        scaled = sigma if self.delta_sigma is None else sigma + self.delta_sigma.unflatten(0, (self.site.groups, 1, -1))
        left, right = self.site.split_groups(self.up), self.site.split_groups(self.down)
        if self.normalised:
            left, right = left * self._inverse(sigma), right * self._inverse(sigma)
        core = left * scaled + scaled.mT * right.mT + (left * scaled) @ right.mT
        if self.delta_sigma is not None:
            core = core + torch.diag_embed((scaled - sigma).squeeze(1))
        return Chain(self.left, self.right, core=core.flatten(0, 1))

    @staticmethod
    def _inverse(sigma: Tensor) -> Tensor:
        floor = torch.finfo(sigma.dtype).eps * sigma.amax(-1, keepdim=True)  # a dead layer's zeros
        return 1 / sigma.clamp_min(floor + torch.finfo(sigma.dtype).tiny)

    def _free_chain(self) -> Chain:
        groups = self.site.groups
        left, right = self.site.split_groups(self.left), self.site.split_groups(self.right)
        up, down = self.site.split_groups(self.up), self.site.split_groups(self.down)
        sigma = self.sigma.unflatten(0, (groups, 1, -1))
        if self.normalised:
            inverse = self._inverse(sigma)
            up, down = up * inverse, down * inverse.mT
        if self.delta_sigma is None:
            first, second = up * sigma, (left + up) * sigma
        else:
            change = self.delta_sigma.unflatten(0, (groups, 1, -1))
            first, second = up * (sigma + change) + left * change, (left + up) * (sigma + change)
        return Chain(torch.cat([first, second], -1).flatten(0, 1), torch.cat([right, down], 1).flatten(0, 1))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        sigma = {} if self.delta_sigma is None else {"sigma": [self.delta_sigma]}
        return {"down": [self.down], "up": [self.up], **sigma}
