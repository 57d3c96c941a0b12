"""The table that the contract suite runs over: methods × layers. A new method adds one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.inject import AdapterSet, attach
from adapters.registry import make_spec
from adapters.sites import Site


@dataclass(frozen=True)
class Method:
    """A method with the knobs that it is tested under."""

    name: str
    knobs: Mapping[str, object]
    parameters: Callable[[Site], int]
    """The formula for its trainable parameters on one layer."""
    low_rank: bool = True
    """Whether its ΔW is offered as two factors."""


def lora_parameters(site: Site) -> int:
    return 4 * site.columns + site.rows * 4 // site.groups


METHODS = (
    Method("lora", {"rank": 4, "alpha": 6.0}, lora_parameters),
    Method("dora", {"rank": 4, "alpha": 6.0}, lambda site: lora_parameters(site) + site.rows, low_rank=False),
)


@dataclass(frozen=True)
class Layer:
    """A kind of base layer and an input for it. Sizes are such that no activation has as many numbers as W."""

    make: Callable[[], nn.Linear | nn.Conv2d]
    input_shape: tuple[int, ...]


def _dilated() -> nn.Conv2d:
    return nn.Conv2d(8, 12, 3, padding="same", dilation=2, padding_mode="circular")


LAYERS = {
    "linear": Layer(lambda: nn.Linear(20, 28), (2, 5, 20)),
    "linear without bias": Layer(lambda: nn.Linear(20, 28, bias=False), (3, 20)),
    "conv 3x3": Layer(lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 5, 7)),
    "conv strided": Layer(lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 7, 9)),
    "conv 1x1": Layer(lambda: nn.Conv2d(8, 12, 1), (2, 8, 5, 5)),
    "conv grouped": Layer(lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4), (2, 8, 5, 5)),
    "conv dilated": Layer(_dilated, (2, 8, 5, 7)),
}


class Base(nn.Module):
    """A base model of one layer."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer.make().to(dtype)
        self.x = torch.randn(layer.input_shape).to(dtype)

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.layer(self.x if x is None else x)

    def attach(self, method: Method, **knobs: object) -> AdapterSet:
        spec = make_spec(method.name, **{**method.knobs, **knobs})
        return attach({"unet": self}, spec, {"unet": "layer"}, seed=0)


def nudge(adapter_set: AdapterSet, size: float = 0.1) -> None:
    """Moves every trainable off its start, by the same amounts each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
