"""OFT (arXiv 2306.07280): the input, or output, features are rotated in blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import UserInputError
from adapters.rotations import Side, block_turns, turn, turn_weight, turned_channels
from adapters.sites import Site


class OftSpec(AdapterSpec, frozen=True):
    method: Literal["oft"] = "oft"
    block_size: int = Field(
        default=32,
        ge=2,
        le=4096,
        description="Channels that are rotated together; a layer that it does not divide takes the nearest divisor.",
    )
    side: Side = Field(
        default="input", description="Which channels turn: input (as peft has it) or output (as kohya and LyCORIS)."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Chance of dropping each feature before it is turned.")


class Oft(Adapter, spec=OftSpec):
    """W' = W·Rᵀ or R·W, R = blockdiag(R_1 … R_{c/n}), R_b = (I − Q_b)(I + Q_b)⁻¹, Q_b skew: c(n − 1)/2 parameters.

    In training it is the base layer on (R − I)-turned input, ΔW x = W(xR − x): W is neither copied nor multiplied. On
    the output side it is (R − I)-turned W x, from the base's own output: no second product with W.
    On a convolution R turns the input channels of each group, the same for every tap of the kernel, and a map that
    is the same at each place may be moved in front of the convolution. peft lets R turn the κ-wide patches (channels
    × taps), which is no map of the input, so it must rebuild the weight or unfold x: the two agree on Linear layers
    and 1×1 convolutions. Angles are peft's (its Q, above the diagonal), its exact Cayley form, not Neumann's series.
    """

    title: ClassVar[str] = "OFT"
    paper: ClassVar[str] = "arXiv 2306.07280"
    equation: ClassVar[str] = "W' = W · blockdiag(R)ᵀ or blockdiag(R) · W, R = (I − Q)(I + Q)⁻¹"

    gram: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: OftSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout = spec.dropout
        self.side: Side = spec.side
        self.size = nearest_block(site, spec.block_size, self.side)
        blocks = turned_channels(site, self.side) // self.size
        self.angles = nn.Parameter(weight.new_zeros(1, blocks, self.size * (self.size - 1) // 2))
        if self.side == "output" and spec.magnitude:
            rows = site.matricise(weight).unflatten(0, (blocks, -1))
            with torch.autocast(weight.device.type, enabled=False):
                self.register_buffer("gram", rows @ rows.mT, persistent=False)

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        turns, axis = block_turns(self.angles, self.size), self.site.channel_axis
        if self.side == "output":
            dropped = F.dropout(self.site.without_bias(y_base), self.dropout, self.training)
            return turn(dropped, turns, axis, transposed=True)
        return self.site.apply_weight(turn(F.dropout(x, self.dropout, self.training), turns, axis))

    def delta_weight(self, weight: Tensor) -> Tensor:
        return turn_weight(self.site, weight, block_turns(self.angles, self.size), self.side)

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        """A rotation of the columns keeps every row's length, tap by tap on a convolution; of rows: diag(R W Wᵀ Rᵀ)."""
        if self.side == "input":
            return base_norm2
        (turned,) = block_turns(self.angles, self.size)
        change = turned @ self.gram  # exactly 0 at the start, so that the norm is exactly the base's
        return base_norm2 + ((2 * change + change @ turned.mT).diagonal(dim1=-2, dim2=-1)).flatten()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"rotation": [self.angles]}


def nearest_block(site: Site, wanted: int, side: Side = "input") -> int:
    """The divisor of a group's channels that is nearest to `wanted` (of two as near, the smaller), at least 2."""
    channels = turned_channels(site, side) // site.groups
    divisors = [size for size in range(2, channels + 1) if channels % size == 0]
    if not divisors:
        raise UserInputError(f"{site.name} has one channel a group: nothing to rotate.", "Leave this layer out.")
    return min(divisors, key=lambda size: abs(size - wanted))
