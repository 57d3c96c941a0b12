"""OFT (arXiv 2306.07280): the input features are rotated in blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import UserInputError
from adapters.rotations import block_turns, turn, turn_weight
from adapters.sites import Site


class OftSpec(AdapterSpec, frozen=True):
    method: Literal["oft"] = "oft"
    block_size: int = Field(
        default=32,
        ge=2,
        le=1024,
        description="Channels that are rotated together; a layer that it does not divide takes the nearest divisor.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Chance of dropping each input feature in training.")


class Oft(Adapter, spec=OftSpec):
    """W' = W·Rᵀ, R = blockdiag(R_1 … R_{c/n}), R_b = (I − Q_b)(I + Q_b)⁻¹ with Q_b skew: c(n − 1)/2 parameters.

    In training it is the base layer on (R − I)-turned input, ΔW x = W(xR − x): W is neither copied nor multiplied.
    On a convolution R turns the input channels of each group, the same for every tap of the kernel, and a map that
    is the same at each place may be moved in front of the convolution. peft lets R turn the κ-wide patches (channels
    × taps), which is no map of the input, so it must rebuild the weight or unfold x: the two agree on Linear layers
    and 1×1 convolutions. Angles are peft's (its Q, above the diagonal), its exact Cayley form, not Neumann's series.
    """

    title: ClassVar[str] = "OFT"
    paper: ClassVar[str] = "arXiv 2306.07280"
    equation: ClassVar[str] = "W' = W · blockdiag(R)ᵀ, R = (I − Q)(I + Q)⁻¹"

    def __init__(self, site: Site, weight: Tensor, spec: OftSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout = spec.dropout
        self.size = nearest_block(site, spec.block_size)
        self.angles = nn.Parameter(weight.new_zeros(1, site.channels // self.size, self.size * (self.size - 1) // 2))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training)
        return self.site.apply_weight(turn(dropped, block_turns(self.angles, self.size), self.site.channel_axis))

    def delta_weight(self, weight: Tensor) -> Tensor:
        return turn_weight(self.site, weight, block_turns(self.angles, self.size))

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        """A rotation of the columns keeps every row's length, tap by tap on a convolution."""
        return base_norm2

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"rotation": [self.angles]}


def nearest_block(site: Site, wanted: int) -> int:
    """The divisor of a group's channels that is nearest to `wanted` (of two as near, the smaller), at least 2."""
    channels = site.channels // site.groups
    divisors = [size for size in range(2, channels + 1) if channels % size == 0]
    if not divisors:
        raise UserInputError(f"{site.name} has one channel a group: nothing to rotate.", "Leave this layer out.")
    return min(divisors, key=lambda size: abs(size - wanted))
