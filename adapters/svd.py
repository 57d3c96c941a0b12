"""Singular vectors of base weights in fp32: randomised where only the top ones are asked for, exact elsewhere.

Exact decompositions, and all on a CPU, are kept on disk under the hash of the weight. A randomised one on a GPU takes
less time than reading it back would, so it is not kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.errors import StudioError

OVERSAMPLING = 8
POWER_STEPS = 2
_DRAWN_PART = 4
"""Randomised where fewer than one in so many singular vectors is wanted; exact is as fast elsewhere."""

_SQUARED_AWAY = 1e-6
"""σ/σ_max below which fp64 squares no longer give an fp32 vector."""


class Svd(NamedTuple):
    """Part of W = U S Vᵀ, batched over a convolution's groups: signs are as the driver left them."""

    u: Tensor
    """[g, m, n]"""
    s: Tensor
    """[g, n], descending."""
    vt: Tensor
    """[g, n, κ]"""


@dataclass(frozen=True)
class Decomposer:
    """Decomposes [g, m, κ] weights; `cache` is a folder on disk (None: nothing is kept) of at most `limit` bytes."""

    cache: Path | None = None
    limit: int = 4 << 30

    def top(self, weight: Tensor, count: int) -> Svd:
        """The `count` largest singular values with their vectors."""
        drawn = (count + OVERSAMPLING) * _DRAWN_PART <= min(weight.shape[-2:])
        keep = not (drawn and weight.device.type == "cuda")
        compute = randomised if drawn else _first
        return self._find(weight, f"top{count}", count, lambda: compute(weight, count), keep)

    def bottom(self, weight: Tensor, count: int) -> Svd:
        """The `count` smallest, which only an exact decomposition gives."""
        return self._find(weight, f"bottom{count}", count, lambda: _part(exact(weight), slice(-count, None)))

    def columns(self, weight: Tensor, indices: Tensor) -> Svd:
        """Those at `indices` [n] (0 is the largest), exact."""
        key = "columns" + hashlib.sha256(indices.cpu().numpy().tobytes()).hexdigest()[:16]
        return self._find(weight, key, len(indices), lambda: _part(exact(weight), indices.to(weight.device)))

    def _find(self, weight: Tensor, key: str, count: int, compute: Callable[[], Svd], keep: bool = True) -> Svd:
        if weight.is_meta:
            return _zeros(weight, count)
        if self.cache is None or not keep:
            return compute()
        path = self.cache / f"{weight_hash(weight)[:40]}-{tuple(weight.shape)}-{key}.safetensors".replace(" ", "")
        with suppress(OSError, SafetensorError, KeyError):  # missing or damaged: computed again
            kept = load_file(path)
            with suppress(OSError):  # a cache that may only be read is a cache
                os.utime(path)
            return Svd(*(kept[name].to(weight.device) for name in Svd._fields))
        found = compute()
        with suppress(StudioError, OSError):  # a full disk costs time, not the run
            with atomic_path(path) as part:
                save_file({name: t.cpu().contiguous() for name, t in found._asdict().items()}, part)
            self._shrink()
        return found

    def _shrink(self) -> None:
        """Deletes what was not used for longest until the folder is within its limit."""
        assert self.cache is not None
        files = sorted(((p.stat(), p) for p in self.cache.glob("*.safetensors")), key=lambda item: -item[0].st_mtime)
        total = 0
        for status, path in files:
            total += status.st_size
            if total > self.limit:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Unread(Decomposer):
    """Zeros of the right shapes: for adapters whose factors are about to be loaded from a file."""

    def _find(self, weight: Tensor, key: str, count: int, compute: Callable[[], Svd], keep: bool = True) -> Svd:
        return _zeros(weight, count)


def weight_hash(weight: Tensor) -> str:
    """sha256 (hex) of a weight's bytes, in the precision it is decomposed in."""
    raw = weight.detach().cpu().contiguous()
    return hashlib.sha256(raw.flatten().view(torch.uint8).numpy().data).hexdigest()


def _zeros(weight: Tensor, count: int) -> Svd:
    groups, rows, columns = weight.shape
    return Svd(
        weight.new_zeros(groups, rows, count), weight.new_zeros(groups, count), weight.new_zeros(groups, count, columns)
    )


@torch.no_grad()
def randomised(weight: Tensor, count: int) -> Svd:
    """The top `count` by a random sketch with power iterations (Halko et al., arXiv 0909.4061, alg. 4.4 and 5.1).

    Vectors are orthonormal to rounding; how close they are to W's own depends on how fast its values fall.
    """
    generator = torch.Generator(weight.device).manual_seed(0)
    shape = (*weight.shape[:-2], weight.shape[-1], count + OVERSAMPLING)
    sketch = weight @ torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(sketch).Q
        sketch = weight @ torch.linalg.qr(weight.mT @ basis).Q
    basis = torch.linalg.qr(sketch).Q
    u, s, vt = torch.linalg.svd(basis.mT @ weight, full_matrices=False)
    return _part(Svd(basis @ u, s, vt), slice(None, count))


@torch.no_grad()
def exact(weight: Tensor) -> Svd:
    """All of W's singular values and vectors.

    On a GPU from the Gram matrix of the narrow side in fp64: five times faster than cuSOLVER's SVD, and for an fp32
    weight as accurate (values to 6e-8, vectors orthonormal to 1e-6; benchmarks/decompositions.py), as long as
    no value is lost to squaring; such a weight goes the ordinary way.
    """
    if weight.device.type != "cuda" or weight.dtype == torch.float64:
        return Svd(*torch.linalg.svd(weight, full_matrices=False))
    found = by_gram(weight)
    trusted = (found.s[:, -1] > _SQUARED_AWAY * found.s[:, 0]).all()
    return found if bool(trusted) else Svd(*torch.linalg.svd(weight, full_matrices=False))


def by_gram(weight: Tensor) -> Svd:
    """W = U S Vᵀ from the eigenvectors of WᵀW (or W Wᵀ, where that is smaller) in fp64."""
    wide = weight.shape[-1] > weight.shape[-2]
    tall = (weight.mT if wide else weight).double()
    values, vectors = torch.linalg.eigh(tall.mT @ tall)
    right, sigma = vectors.flip(-1), values.flip(-1).clamp_min(0).sqrt()
    left = (tall @ right) / sigma[:, None].clamp_min(torch.finfo(sigma.dtype).tiny)
    left, sigma, right = left.to(weight), sigma.to(weight), right.to(weight)
    return Svd(right, sigma, left.mT) if wide else Svd(left, sigma, right.mT)


def _first(weight: Tensor, count: int) -> Svd:
    return _part(exact(weight), slice(None, count))


def _part(whole: Svd, which: slice | Tensor) -> Svd:
    return Svd(whole.u[..., which], whole.s[..., which], whole.vt[..., which, :])
