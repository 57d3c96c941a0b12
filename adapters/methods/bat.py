"""Bat (arXiv 2409.15371, section 3): Bone whose blocks also act on the weight."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapters.base import Adapter, Context, RankSpec
from adapters.errors import UserInputError
from adapters.sites import Site


class BatSpec(RankSpec, frozen=True):
    method: Literal["bat"] = "bat"


class Bat(Adapter, spec=BatSpec):
    """ΔW_ab = W_ab·D_a + D_a for each r×r block, a of the outputs, b of the inputs; D = 0 at the start; r·d parameters.

    ΔW has full rank, and W = (W' − D)(I + D)⁻¹ block by block. It is the one method that builds a d×κ matrix: since
    D_a belongs to an *output* block (as in the paper's code and in peft), each output block would need its own
    transform of x, d/r of them; as one weight it is r·d·κ multiply-adds. The matrix is rebuilt in backward, so that
    no layer keeps a second copy of its weight from forward to backward.
    """

    title: ClassVar[str] = "Bat"
    paper: ClassVar[str] = "arXiv 2409.15371"
    equation: ClassVar[str] = "ΔW = W · D + D per r×r block"

    def __init__(self, site: Site, weight: Tensor, spec: BatSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout, self.rank = spec.dropout, spec.rank
        if site.rows % self.rank or site.columns % self.rank:
            raise UserInputError(
                f"{site.name} is {site.rows}×{site.columns}, which blocks of {self.rank} do not divide.",
                "Choose a rank that divides both (targets.overrides gives a layer its own), or leave this layer out.",
            )
        self.blocks = nn.Parameter(weight.new_zeros(site.rows // self.rank, self.rank, self.rank))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training)
        found = checkpoint(self._product, dropped, self.blocks, use_reentrant=False, preserve_rng_state=False)
        return cast(Tensor, found)

    def _product(self, x: Tensor, blocks: Tensor) -> Tensor:
        weight = self.site.matricise(self.site.weight).to(x.dtype)
        return self.site.apply_down(x, block_product(weight, blocks.to(x.dtype)))

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.site.as_weight(block_product(self.site.matricise(weight), self.blocks.to(weight.dtype)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"core": [self.blocks]}


def block_product(matrix: Tensor, blocks: Tensor) -> Tensor:
    """W_ab·D_a + D_a. [d, κ], [d/r, r, r] → [d, κ]."""
    count, rank, _ = blocks.shape
    tall = matrix.reshape(count, -1, rank)  # block row by block row: r·κ/r rows of r
    product = (tall @ blocks).reshape(count, rank, -1, rank) + blocks[:, :, None]
    return product.reshape(matrix.shape)
