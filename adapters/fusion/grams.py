"""Second moments of what adapters look at in real activations: all that fusing and judging need of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapters.sites import Site


@dataclass(frozen=True)
class Watched:
    """A layer, and the rows A whose products with x are gathered."""

    site: Site
    down: Tensor
    """[Σr, κ]"""


@dataclass
class Moments:
    """Sums over positions; tensors, so that a recorded forward pass adds to them, too."""

    total: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    count: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def mean(self) -> dict[str, Tensor]:
        """E[z zᵀ] of every layer that was met, [Σr, Σr], in fp32 on the CPU."""
        return {name: (total / self.count[name].clamp_min(1)).cpu() for name, total in self.total.items()}


@contextmanager
def gathering(layers: Mapping[str, Watched]) -> Generator[Moments]:
    """Within, every call of these layers adds z zᵀ, z = A x, to the moments. Layers with groups are left out."""
    moments, handles = Moments(), []
    for name, watched in layers.items():
        if watched.site.groups > 1:
            continue
        device = watched.site.weight.device
        moments.total[name] = torch.zeros(len(watched.down), len(watched.down), device=device)
        moments.count[name] = torch.zeros((), device=device)
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

    return hook
