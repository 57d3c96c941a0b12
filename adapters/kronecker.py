"""ΔW = s·Σ_t A_t ⊗ B_t, applied block by block and never built: KronA, LoKr."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Context, LowRankSpec
from adapters.sites import Site

Second = Literal["full", "low-rank", "tucker"]


class Kron(NamedTuple):
    """A ⊗ B with A [a1, a2] and B [b1, b2, kh, kw] ([b1, b2] on a Linear layer); a1·b1 = d, a2·b2 = c_in/g."""

    first: Tensor
    second: tuple[Tensor, ...]
    """The maps whose product is B, from the input on: [·, ·, kh, kw] with the layer's geometry, [·, ·] pointwise."""


class _Split(NamedTuple):
    """A's rows for each group: a group's outputs may begin and end within a block of b1 rows."""

    first: Tensor
    """[g, m, a2]"""
    offsets: tuple[int, ...]
    """Where a group's d/g outputs begin among its m·b1."""


def kron(site: Site, x: Tensor, y: Tensor, term: Kron) -> Tensor:
    """(A ⊗ B)x: y = A X Bᵀ with x in a2 blocks of b2 channels, in the order that takes fewer multiply-adds.

    Args:
        x: the layer's input; factors are cast to its dtype.
        y: the layer's output, for its shape.
    """
    second = [factor.to(x.dtype) for factor in term.second]
    split = _split_rows(site, term.first.to(x.dtype), second[-1].shape[0])
    axis, blocks = site.channel_axis, term.first.shape[1]
    z = x.unflatten(axis, (site.groups, blocks, -1))
    if _second_first(site, x, y, split.first, second):
        z = site.mix_blocks(_apply(site, z, second), split.first)
    else:
        z = _apply(site, site.mix_blocks(z, split.first), second)
    size, joined = site.rows // site.groups, z.flatten(axis - 1, axis)
    if joined.shape[axis] == size:
        return joined.flatten(axis - 1, axis)
    parts = joined.unbind(axis - 1)
    return torch.cat([part.narrow(axis, at, size) for part, at in zip(parts, split.offsets, strict=True)], axis)


def _split_rows(site: Site, first: Tensor, height: int) -> _Split:
    size, groups = site.rows // site.groups, site.groups
    if first.shape[0] % groups == 0:
        return _Split(first.unflatten(0, (groups, -1)), (0,) * groups)
    touched = [range(g * size // height, -(-(g + 1) * size // height)) for g in range(groups)]
    most = max(map(len, touched))
    starts = [min(rows.start, first.shape[0] - most) for rows in touched]
    offsets = tuple(g * size - start * height for g, start in enumerate(starts))
    return _Split(torch.stack([first[start : start + most] for start in starts]), offsets)


def _apply(site: Site, z: Tensor, second: Sequence[Tensor]) -> Tensor:
    for factor in second:
        z = site.apply_core(z, factor)
    return z


def _second_first(site: Site, x: Tensor, y: Tensor, first: Tensor, second: Sequence[Tensor]) -> bool:
    """Whether B before A is the cheaper order, by multiply-adds."""
    axis = site.channel_axis
    n_in, n_out = (t.numel() // t.shape[axis] for t in (x, y))
    each, at = 0, n_in
    for factor in second:
        at = n_out if factor.ndim == 4 else at
        each += at * factor.numel()
    groups, rows, columns = first.shape
    wide, tall = second[0].shape[1], second[-1].shape[0]
    before = groups * columns * each + n_out * first.numel() * tall
    after = groups * rows * each + n_in * first.numel() * wide
    return before <= after


def dense_second(second: Sequence[Tensor]) -> Tensor:
    """B as a matrix, [b1, b2·kh·kw]."""
    total = second[0]
    for factor in second[1:]:
        rule = "or,r...->o..." if factor.ndim == 2 else "or...,ri->oi..."
        total = torch.einsum(rule, factor, total)
    return total.flatten(1)


def factorization(size: int, factor: int | None = None) -> tuple[int, int]:
    """size = m·n as LyCORIS splits it: m is `factor` if that divides, else the largest divisor up to it and √size."""
    if factor is not None and size % factor == 0:
        return factor, size // factor
    most = min(math.isqrt(size), size if factor is None else factor)
    m = max(m for m in range(1, most + 1) if size % m == 0)
    return m, size // m


def second_shapes(kind: Second, b1: int, b2: int, kernel: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """B's factors by their names in a LoKr file."""
    if kind == "full":
        return {"w2": (b1, b2, *kernel)}
    if kind == "tucker" and max(kernel, default=1) > 1:
        return {"t2": (rank, rank, *kernel), "w2_a": (rank, b1), "w2_b": (rank, b2)}
    return {"w2_a": (b1, rank), "w2_b": (rank, b2 * math.prod(kernel))}


class Kronecker(Adapter):
    """What LoKr and KronA share: a subclass makes the factors and says which terms they make.

    Factors have a LoKr file's names and shapes: w1 or w1_a, w1_b for A; w2, or w2_a, w2_b and maybe t2 for B.
    Output channel i is A's row i // b1 and B's row i mod b1, whatever the layer's groups are.
    """

    def __init__(self, site: Site, weight: Tensor, spec: LowRankSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.scale, self.dropout = spec.scale, spec.dropout

    @abstractmethod
    def terms(self) -> Sequence[Mapping[str, Tensor]]:
        """The factors of each term A_t ⊗ B_t, by name and with gradients; s is not in them."""

    def products(self) -> list[Kron]:
        """The terms, s in A."""
        return [Kron(self.scale * _first(term), self._second(term)) for term in self.terms()]

    def _second(self, factors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if "w2" in factors:
            return (factors["w2"],)
        a, b = factors["w2_a"], factors["w2_b"]
        if "t2" in factors:
            return b, factors["t2"], a.mT
        return b.unflatten(1, (-1, *self.site.shape[2:])), a

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        first, *others = [kron(self.site, x, y_base, term) for term in self.products()]
        return sum(others, first)

    def delta_weight(self, weight: Tensor) -> Tensor:
        first, *others = [torch.kron(a, dense_second(b)) for a, b in self.products()]
        return self.site.as_weight(sum(others, first)).to(weight.dtype)

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        """With i = (i1, i2): ‖W_i‖² + 2·Σ_t A_t[i1]·(W_i B_t[i2]) + Σ_tu ⟨A_t[i1], A_u[i1]⟩⟨B_t[i2], B_u[i2]⟩.

        W is read once for each term (dκ multiply-adds); d·κ/a2 numbers are built: fewer than d×κ but for a2 = 1.
        """
        dense = [(a, dense_second(b)) for a, b in self.products()]
        total = base_norm2
        for a, b in dense:
            cross = self.site.block_products(b).unflatten(0, (a.shape[0], -1))
            total = total + 2 * (cross * a[:, None]).sum(-1).flatten()
            for other_a, other_b in dense:
                square = torch.outer((a * other_a).sum(1), (b * other_b).sum(1))
                total = total + square.flatten()
        return total

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"first": [], "second": []}
        for name, parameter in self.named_parameters():
            groups["first" if name.startswith("w1") else "second"].append(parameter)
        return groups


def _first(factors: Mapping[str, Tensor]) -> Tensor:
    return factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """U(±1/√fan-in): LyCORIS's start (kaiming_uniform with a = √5)."""
    return (2 * torch.rand(tuple(shape), generator=generator) - 1) / math.sqrt(math.prod(shape[1:]))
