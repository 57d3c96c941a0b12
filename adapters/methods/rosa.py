"""RoSA (arXiv 2401.04679)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.anchors import AnchoredSpec
from adapters.base import Adapter, Calibration, Context, GradientPair
from adapters.kernels import chain
from adapters.methods.lora import Lora
from adapters.sites import Site
from adapters.sparse import sparse, sparse_row_norm2


class RosaSpec(AnchoredSpec, frozen=True):
    method: Literal["rosa"] = "rosa"
    density: float = Field(default=0.006, gt=0, le=0.5, description="Part of the weight's entries that learn singly.")


class Rosa(Adapter, spec=RosaSpec):
    """ΔW = s·B A + S: a LoRA and a sparse matrix whose entries are those of the largest mean squared gradient.

    r(d + κ) + nnz parameters, nnz = density·dκ rounded, at least 1. The entries are found on the bare base before the
    first step (section 4 of the paper; the mean is over `calibration_draws` batches) and are saved as one index each.
    """

    title: ClassVar[str] = "RoSA"
    paper: ClassVar[str] = "arXiv 2401.04679"
    equation: ClassVar[str] = "ΔW = α/r · B A + S"

    entries: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: RosaSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout, self.draws = spec.dropout, spec.calibration_draws
        self.pair = Lora(site, weight, spec, context)
        count = max(1, round(spec.density * weight.numel()))
        self.values = nn.Parameter(weight.new_zeros(count))
        # spread evenly until the gradients are known; int32 is enough for 2³¹ weights
        spread = torch.arange(count, dtype=torch.int32, device=weight.device) * (weight.numel() // count)
        self.register_buffer("entries", spread)

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        low_rank = chain(self.site, x, *self.pair.chain())
        return low_rank + sparse(self.site, x, self.values, self.entries).to(low_rank.dtype)

    def delta_weight(self, weight: Tensor) -> Tensor:
        matrix = self.site.matricise(self.pair.delta_weight(weight)).flatten()
        return self.site.as_weight(matrix.index_add(0, self.entries, self.values.to(matrix.dtype)))

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        up, down = self.pair.factors()
        with_pair = self.pair.row_norm2(base_norm2)
        return sparse_row_norm2(self.site, with_pair, up, down, self.values, self.entries)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**self.pair.parameter_groups(), "sparse": [self.values]}

    def gradient_pair(self) -> GradientPair:
        return self.pair.gradient_pair()

    def calibrations(self) -> Sequence[Calibration]:
        return (*self.pair.calibrations(), LargestGradients(self.entries, self.draws))


class LargestGradients(Calibration):
    """Writes the entries of the largest mean squared gradient, in rising order; keeps one d×κ sum."""

    def __init__(self, entries: Tensor, draws: int) -> None:
        self.entries, self.draws = entries, draws
        self.sum: Tensor | None = None

    def observe(self, gradient: Tensor) -> None:
        square = gradient.flatten().square()
        self.sum = square if self.sum is None else self.sum.add_(square)

    def finish(self) -> None:
        assert self.sum is not None
        self.entries.copy_(self.sum.topk(len(self.entries)).indices.sort().values)
        self.sum = None
