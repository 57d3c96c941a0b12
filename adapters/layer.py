"""The forward hook on one layer of the base: all adapters on it, side by side, each against the base's W."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.base import Adapter
from adapters.errors import StudioError, UserInputError
from adapters.quantized import Quantized
from adapters.sites import Site


@dataclass
class Switch:
    """How an adapter set is applied: shared by all layers of the set."""

    strength: float = 1.0
    merged: bool = False
    place: Callable[[Site, Tensor], Tensor] | None = None
    """What is left of a layer's change where the set acts in a part of the picture only."""


@dataclass(eq=False)
class AdaptedLayer:
    """y = y_base + Σ strength·delta(x, y_base) over the adapters attached here.

    One hook a layer, however many sets are on it: a hook of its own for each set would show the second one an
    output that the first has already changed. The base keeps its class, its state dict and its bytes.
    """

    site: Site
    entries: list[tuple[Adapter, Switch]] = field(default_factory=list[tuple[Adapter, Switch]])
    handle: RemovableHandle | None = None
    original: Tensor | None = None
    """The weight's own bytes, on the CPU, while anything is merged."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], y_base: Tensor) -> Tensor:
        total = y_base
        for adapter, switch in self.entries:
            if switch.strength == 0.0 or switch.merged:
                continue
            if self.original is not None:
                raise StudioError(
                    f"Some adapters on {self.site.name} are merged and others are not.",
                    "Merge all of them or none: an unmerged one would see another's output as the base's.",
                )
            delta = adapter.delta(args[0], y_base)
            if switch.place is not None:
                delta = switch.place(self.site, delta)
            total = torch.add(total, delta.to(y_base.dtype), alpha=switch.strength)
        return total

    def add(self, adapter: Adapter, switch: Switch) -> None:
        self.entries.append((adapter, switch))
        if self.handle is None:
            self.handle = self.site.module.register_forward_hook(self)

    def remove(self, switch: Switch) -> None:
        """Takes a set's adapter off; the last one takes the hook along."""
        self.entries = [entry for entry in self.entries if entry[1] is not switch]
        if not self.entries and self.handle is not None:
            self.handle.remove()
            self.handle = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the weight W + Σ strength·ΔW over the merged adapters: summed in fp32, rounded once."""
        merged = [(adapter, switch.strength) for adapter, switch in self.entries if switch.merged]
        if self.original is None and not merged:
            return
        if isinstance(self.site.module, Quantized):
            raise UserInputError(
                f"{self.site.name} is quantised, and nothing can be merged into it.",
                "Load the base in full precision (quantization=none) and merge there: the file fits both.",
            )
        weight = self.site.weight
        if self.original is None:
            self.original = weight.detach().to("cpu", copy=True)
        if merged:
            total = base = master(self.original.to(weight.device))
            for adapter, strength in merged:
                total = total + strength * adapter.delta_weight(base)
            weight.copy_(total)
        else:
            weight.copy_(self.original)
            self.original = None


def master(weight: Tensor) -> Tensor:
    """A weight in the precision that factors and merges are computed in: fp32, or fp64 for an fp64 base."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def adapted_layer(site: Site) -> AdaptedLayer:
    """The hook that is on the layer already, or a new one that is not registered yet."""
    hooks = site.module._forward_hooks  # pyright: ignore[reportPrivateUsage]  # torch offers no other reader
    for hook in hooks.values():
        if isinstance(hook, AdaptedLayer):
            return hook
    return AdaptedLayer(site)
