"""What fusing and judging need of real activations: second moments of what adapters look at, and sampled inputs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapters.sites import Site

_LAST = 2**32
"""Behind every hash."""


@dataclass(frozen=True)
class Watched:
    """A layer, and the rows A whose products with x are gathered."""

    site: Site
    down: Tensor
    """[Σr, κ]"""


class Sample:
    """`size` of a layer's inputs, evenly from all positions: those whose numbers have the smallest hashes.

    Hashes in the place of a generator: a recorded forward pass chooses anew, and every device the same positions.
    Only what is kept is copied out of x, so that no convolution is unfolded.
    """

    def __init__(self, site: Site, size: int) -> None:
        weight = site.weight
        self.site = site
        self.rows = weight.new_zeros(size, site.columns)
        self.keys = torch.full((size,), _LAST, device=weight.device)
        self.met = torch.zeros((), dtype=torch.int64, device=weight.device)

    def add(self, x: Tensor) -> None:
        """The positions of one call."""
        patches = self.site.patches(x)
        places = patches.shape[: patches.ndim - len(self.site.shape) + 1]
        count = places.numel()
        keys = hashed(self.met + torch.arange(count, device=x.device))
        smallest = keys.topk(min(len(self.keys), count), largest=False)
        rows = patches[_unravelled(smallest.indices, places)].flatten(1)
        best = torch.cat([self.keys, smallest.values]).topk(len(self.keys), largest=False)
        self.rows.copy_(torch.cat([self.rows, rows.to(self.rows.dtype)])[best.indices])
        self.keys.copy_(best.values)
        self.met += count

    def taken(self) -> Tensor:
        """[n, κ] on the CPU; fewer than `size` where fewer positions were met."""
        return self.rows[self.keys < _LAST].cpu()


def hashed(numbers: Tensor) -> Tensor:
    """Whole numbers below 2³² as others that look random, one to one (Wellons' lowbias32)."""
    mask = _LAST - 1
    mixed = numbers ^ (numbers >> 16)
    mixed = (mixed * 0x7FEB352D) & mask
    mixed = mixed ^ (mixed >> 15)
    mixed = (mixed * 0x846CA68B) & mask
    return mixed ^ (mixed >> 16)


def _unravelled(indices: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """torch.unravel_index, which copies from the CPU and so cannot be recorded."""
    found: list[Tensor] = []
    for size in reversed(shape):
        found.insert(0, indices % size)
        indices = indices // size
    return tuple(found)


@dataclass
class Moments:
    """Sums over positions; tensors, so that a recorded forward pass adds to them, too."""

    total: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    count: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    samples: dict[str, Sample] = field(default_factory=dict[str, Sample])

    def mean(self) -> dict[str, Tensor]:
        """E[z zᵀ] of every layer that was met, [Σr, Σr], in fp32 on the CPU."""
        return {name: (total / self.count[name].clamp_min(1)).cpu() for name, total in self.total.items()}

    def sampled(self) -> dict[str, Tensor]:
        """x at some positions of every layer, [n, κ], in the layer's dtype on the CPU; empty where none were wanted."""
        return {name: sample.taken() for name, sample in self.samples.items()}


@contextmanager
def gathering(layers: Mapping[str, Watched], samples: int = 0) -> Generator[Moments]:
    """Within, every call of these layers adds z zᵀ, z = A x, to the moments, and x to the samples.

    Layers with groups are left out.
    """
    moments, handles = Moments(), []
    for name, watched in layers.items():
        if watched.site.groups > 1:
            continue
        device = watched.site.weight.device
        moments.total[name] = torch.zeros(len(watched.down), len(watched.down), device=device)
        moments.count[name] = torch.zeros((), device=device)
        if samples:
            moments.samples[name] = Sample(watched.site, samples)
        handles.append(watched.site.module.register_forward_pre_hook(_adding(name, watched, moments)))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _adding(name: str, watched: Watched, moments: Moments) -> Any:
    down = watched.down.to(watched.site.weight.device)

    @torch.no_grad()
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        z = watched.site.apply_down(args[0], down.to(args[0].dtype))
        rows = (z.movedim(1, -1) if watched.site.kind == "conv" else z).flatten(0, -2).float()
        moments.total[name] += rows.T @ rows
        moments.count[name] += len(rows)
        if name in moments.samples:
            moments.samples[name].add(args[0])

    return hook
