"""BOFT (arXiv 2311.06243): the input, or output, features are rotated by a butterfly of block-diagonal rotations."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import UserInputError
from adapters.rotations import Side, block_turns, turn, turn_weight, turned_channels
from adapters.sites import Site


class BoftSpec(AdapterSpec, frozen=True):
    method: Literal["boft"] = "boft"
    block_size: int = Field(default=8, ge=2, le=4096, description="Channels that one small rotation turns together.")
    factors: int = Field(
        default=2,
        ge=1,
        le=12,
        description="Levels m of the butterfly: block_size·2^(m−1) channels mix; must divide each layer's channels.",
    )
    side: Side = Field(
        default="input", description="Which channels turn: input (as peft has it) or output (as LyCORIS)."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Chance of dropping each feature before it is turned.")


class Boft(Adapter, spec=BoftSpec):
    """W' = diag(1 + g)·W·Rᵀ, or diag(1 + g)·R·W, R = R_{m−1} ⋯ R_0, each block-diagonal after a shuffle.

    m·c(n − 1)/2 + d parameters. In training it is the base layer on the turned input: ΔW x = (1 + g)⊙W(xR − x) + g⊙Wx,
    with Wx from the base's own output; on the output side Wx itself is turned, without a second product. Nothing is
    c×c or d×κ (peft multiplies dense c×c factors and permutations). On convolutions R turns the channels of each group,
    the same for every tap (methods.oft says why), so only Linear and 1×1 agree with peft.
    Against peft's parameters: g is its scale less 1, so that weight decay pulls towards the base, and of its n×n
    matrices P only the skew part acts, whose upper triangle is kept here: angles = ½(P − Pᵀ), half as many numbers.
    """

    title: ClassVar[str] = "BOFT"
    paper: ClassVar[str] = "arXiv 2311.06243"
    equation: ClassVar[str] = "W' = diag(1 + g) · W · (R_{m−1} ⋯ R_0)ᵀ or diag(1 + g) · R_{m−1} ⋯ R_0 · W"

    def __init__(self, site: Site, weight: Tensor, spec: BoftSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout, self.size = spec.dropout, spec.block_size
        self.side: Side = spec.side
        channels = turned_channels(site, self.side)
        _check(site, channels // site.groups, spec)
        shape = (spec.factors, channels // self.size, self.size * (self.size - 1) // 2)
        self.angles = nn.Parameter(weight.new_zeros(shape))
        self.gain = nn.Parameter(weight.new_zeros(site.rows))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        turns, axis = block_turns(self.angles, self.size), self.site.channel_axis
        bare = self.site.without_bias(y_base)
        if self.side == "output":
            moved = turn(F.dropout(bare, self.dropout, self.training), turns, axis, transposed=True)
        else:
            moved = self.site.apply_weight(turn(F.dropout(x, self.dropout, self.training), turns, axis))
        return moved + self.site.per_output(self.gain).to(moved.dtype) * (bare + moved)

    def delta_weight(self, weight: Tensor) -> Tensor:
        moved = turn_weight(self.site, weight, block_turns(self.angles, self.size), self.side)
        gain = self.gain.to(weight.dtype)[:, None]
        return moved + self.site.as_weight(gain * self.site.matricise(weight + moved))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"rotation": [self.angles], "magnitude": [self.gain]}


def _check(site: Site, channels: int, spec: BoftSpec) -> None:
    span = spec.block_size * 2 ** (spec.factors - 1)
    if spec.factors > 1 and spec.block_size % 2:
        raise UserInputError(
            f"A butterfly of {spec.factors} levels cuts blocks in halves, and {spec.block_size} is odd.",
            "Choose an even block_size, or factors 1.",
        )
    if channels % span:
        raise UserInputError(
            f"{site.name} has {channels} channels a group, which the butterfly's span of {span} does not divide.",
            "Choose a smaller block_size or fewer factors (block_size·2^(factors−1) must divide the channels), "
            "or leave this layer out.",
        )
