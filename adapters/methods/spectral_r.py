"""Spectral-R, the rotational form of Spectral Adapter (arXiv 2405.13952)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context
from adapters.columns import Spectral, SpectralSpec
from adapters.errors import UserInputError
from adapters.low_rank import Chain
from adapters.rotations import cayley
from adapters.sites import Site


class SpectralRSpec(SpectralSpec, frozen=True):
    method: Literal["spectral-r"] = "spectral-r"
    learn_scale: bool = Field(default=False, description="Learn a factor on each singular value; else they are kept.")


class SpectralR(Spectral, spec=SpectralRSpec):
    """ΔW = U1 (R_U S1 R_Vᵀ − S1) V1ᵀ with R = (I − Q)(I + Q)⁻¹, Q = ½(P − Pᵀ), P = 0 at the start.

    P is kept as its strict upper triangle: r(r − 1) parameters for the two rotations (+ r with the scale), and the
    singular values of W stay what they are unless the scale is learnt. The rotations are computed in fp32, never
    under autocast. For a convolution of g groups each group rotates its own r/g columns.
    """

    title: ClassVar[str] = "Spectral-R"
    paper: ClassVar[str] = "arXiv 2405.13952"
    equation: ClassVar[str] = "ΔW = U1 (R_U S1 R_Vᵀ − S1) V1ᵀ, R = Cayley(P)"

    triangle: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: SpectralRSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        width = spec.rank // site.groups
        if width < 2:
            raise UserInputError(
                f"{site.name} would rotate {width} column in each of {site.groups} groups, which does nothing.",
                f"Choose a rank of at least {2 * site.groups}.",
            )
        angles = site.groups, width * (width - 1) // 2
        self.left_angles = nn.Parameter(weight.new_zeros(angles))
        self.right_angles = nn.Parameter(weight.new_zeros(angles))
        self.gain = nn.Parameter(torch.zeros_like(self.sigma)) if spec.learn_scale else None
        self.register_buffer("triangle", torch.triu_indices(width, width, 1, device=weight.device), persistent=False)

    def rotations(self) -> tuple[Tensor, Tensor]:
        """R_U and R_V, [g, r/g, r/g] each, from one solve."""
        groups, width = self.site.groups, self.left.shape[1]
        angles = torch.cat([self.left_angles, self.right_angles])
        row = torch.arange(2 * groups, device=angles.device)[:, None]
        upper = angles.new_zeros(2 * groups, width, width)
        left, right = cayley(upper.index_put((row, self.triangle[0], self.triangle[1]), angles)).split(groups)
        return left, right

    def chain(self) -> Chain:
        with torch.autocast(self.sigma.device.type, enabled=False):
            left, right = self.rotations()
            sigma = self.sigma.unflatten(0, (self.site.groups, -1))
            scaled = sigma if self.gain is None else sigma * (1 + self.gain.unflatten(0, (self.site.groups, -1)))
            core = (left * scaled[:, None]) @ right.mT - torch.diag_embed(sigma)
        return Chain(self.left, self.right, core=core.flatten(0, 1))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        scale = {} if self.gain is None else {"scale": [self.gain]}
        return {"rotation": [self.left_angles, self.right_angles], **scale}
