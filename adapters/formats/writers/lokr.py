"""LyCORIS's format for Kronecker products: LoKr and KronA as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from adapters.base import Adapter
from adapters.formats.layer_format import Written, pairs_of
from adapters.formats.writers.kohya import Kohya, pair_tensors
from adapters.kronecker import Kronecker


class LoKr(Kohya, name="lokr"):
    """kohya's names with w1 and w2 for layers of LoKr and KronA; other layers, and sums of products, as plain pairs."""

    readers: ClassVar[Mapping[str, str]] = {"kohya_ss": "yes, with LyCORIS", "diffusers": "no: it refuses LoKr"}
    module: ClassVar[str] = "lycoris.kohya"
    arguments: ClassVar[Mapping[str, str]] = {"algo": "lokr"}

    def write(self, layers: Mapping[str, Adapter], rank: int) -> Written:
        tensors: dict[str, Tensor] = {}
        others: dict[str, Adapter] = {}
        for stem, adapter in layers.items():
            if isinstance(adapter, Kronecker) and len(adapter.terms()) == 1:
                tensors |= _kronecker_tensors(stem, adapter)
            else:
                others[stem] = adapter
        if not others:
            return Written(tensors, rank, 0.0)
        pairs = pairs_of(others, rank)
        for stem, delta in pairs.items():
            tensors |= pair_tensors(stem, others[stem].site, delta)
        return Written(tensors, max(d.rank for d in pairs.values()), max(d.error for d in pairs.values()))


def _kronecker_tensors(stem: str, adapter: Kronecker) -> dict[str, Tensor]:
    """The scale goes into w1 and alpha is neutral: readers scale only where a factor is of low rank."""
    (term,) = adapter.terms()
    first = "w1" if "w1" in term else "w1_a"
    found = {name: factor.detach() * (adapter.scale if name == first else 1.0) for name, factor in term.items()}
    low = next((name for name in ("w1_b", "w2_b") if name in term), None)
    rank = 1.0 if low is None else float(len(term[low]))
    return {f"{stem}.lokr_{name}": factor for name, factor in found.items()} | {f"{stem}.alpha": torch.tensor(rank)}
