"""VeRA (arXiv 2310.11454): two random matrices for all layers, and two learnt vectors for each."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Context, RankSpec
from adapters.low_rank import Chain, LowRank, rank_for
from adapters.sites import Site


class VeraKnobs(RankSpec, frozen=True):
    rank: int = Field(default=256, ge=1, le=4096, description="Rows of the shared random bank; costs no parameters.")
    d_initial: float = Field(default=0.1, description="What the vector d starts at.")


class VeraSpec(VeraKnobs, frozen=True):
    method: Literal["vera"] = "vera"


class Vera(LowRank, spec=VeraSpec):
    """ΔW = diag(b)·B·diag(d)·A with b = 0 and d = 0.1 at the start: d_out + r parameters.

    A [r, κ] and B [d, r/g] are the corner of two frozen banks, random (Kaiming uniform over the whole bank, as peft
    does it) and as large as the set's largest layer: one pair for all Linear layers and one for the convolutions of
    each κ, whose columns are taps and must not be cut. An override's rank has banks of its own. The banks are stored
    in the file, once: random numbers differ between devices and versions.
    """

    title: ClassVar[str] = "VeRA"
    paper: ClassVar[str] = "arXiv 2310.11454"
    equation: ClassVar[str] = "ΔW = diag(b) · B · diag(d) · A"

    def __init__(self, site: Site, weight: Tensor, spec: VeraKnobs, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        rank = rank_for(site, spec.rank)
        alike = [s for s in context.sites if s.kind == site.kind and (s.kind == "linear" or s.columns == site.columns)]
        columns, rows = max(s.columns for s in alike), max(s.rows for s in alike)
        bank = f"vera.{site.kind}.{columns}.{rank}"
        self.bank_down = context.shared(f"{bank}.down", lambda g: _uniform(rank, columns, g).to(weight), False)
        self.bank_up = context.shared(f"{bank}.up", lambda g: _uniform(rows, rank, g).to(weight), False)
        self.d = nn.Parameter(weight.new_full((rank,), spec.d_initial))
        self.b = nn.Parameter(weight.new_zeros(site.rows))

    def chain(self) -> Chain:
        down = self.bank_down[:, : self.site.columns]
        up = self.bank_up[: self.site.rows, : len(self.d) // self.site.groups]
        return Chain(self.b[:, None] * up, down, core=self.d)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"core": [self.d], "gate": [self.b]}


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Kaiming uniform with gain √2: U(−√(6/columns), √(6/columns))."""
    bound = math.sqrt(6 / columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)
