"""One layer as a base, an adapter on it, and training as the engine does it: what the contract suite is built of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.calibrate import calibrate
from adapters.inject import attach
from adapters.registry import make_spec
from adapters.sites import Site

Promise = Literal[
    "identity", "trace", "nudge", "gradients", "merge", "autograd", "factors", "strength", "parameters",
    "allocations", "file", "resume", "checkpointing", "sum", "dropout", "compile",
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A method with the knobs that it is tested under."""

    name: str
    knobs: Mapping[str, object]
    parameters: Callable[[Site], int]
    """The formula for its trainable parameters on one layer."""
    low_rank: bool = True
    """Whether its ΔW is offered as two factors."""
    variant: str = ""
    """What is special about this row, where a method has several."""
    exempt: Mapping[Promise, str] = field(default_factory=dict)
    """Promises that the method cannot keep → why."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Kinds of layers that it says no to → a part of what it says."""

    def __str__(self) -> str:
        return f"{self.name} {self.variant}".strip()


@dataclass(frozen=True)
class Layer:
    """A kind of base layer and an input for it. Sizes are such that no activation has as many numbers as W."""

    make: Callable[[], nn.Linear | nn.Conv2d]
    input_shape: tuple[int, ...]


def _dilated() -> nn.Conv2d:
    return nn.Conv2d(16, 24, 3, padding="same", dilation=2, padding_mode="circular")


LAYERS = {
    "linear": Layer(lambda: nn.Linear(40, 56), (2, 5, 40)),
    "linear without bias": Layer(lambda: nn.Linear(40, 56, bias=False), (3, 40)),
    "conv 3x3": Layer(lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 5, 7)),
    "conv strided": Layer(lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 7, 9)),
    "conv 1x1": Layer(lambda: nn.Conv2d(32, 48, 1), (2, 32, 5, 5)),
    "conv grouped": Layer(lambda: nn.Conv2d(16, 24, 3, padding=1, groups=4), (2, 16, 5, 5)),
    "conv dilated": Layer(_dilated, (2, 16, 5, 7)),
}


class Base(nn.Module):
    """A base model of one layer."""

    def __init__(self, layer: Layer, dtype: torch.dtype, device: str = "cpu") -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)  # torch.manual_seed formats three stacks for GPUs that are not there
        self.layer = layer.make().to(device, dtype)
        self.x = torch.randn(layer.input_shape).to(device, dtype)

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.layer(self.x if x is None else x)

    def attach(self, method: Method, **knobs: object) -> AdapterSet:
        """The method's adapter, calibrated where it asks for that."""
        spec = make_spec(method.name, **{**method.knobs, **knobs})
        adapter_set = attach({"unet": self}, spec, {"unet": "layer"}, seed=0, steps=20)
        adapter_set.strength = 0.0
        for _ in calibrate(adapter_set, self._backward):
            pass
        adapter_set.strength = 1.0
        return adapter_set

    def _backward(self, draw: int) -> None:
        target = torch.randn(self.layer(self.x).shape, generator=torch.Generator().manual_seed(draw))
        (self() - target.to(self.x)).float().square().mean().backward()
        for parameter in self.parameters():
            parameter.grad = None


def nudge(adapter_set: AdapterSet, size: float = 0.1) -> None:
    """Moves every trainable off its start, by the same amounts each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))


def train(
    base: Base,
    adapter_set: AdapterSet,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    first: int = 1,
) -> torch.optim.Optimizer:
    """Steps `first` … `first + steps − 1`, with all that the engine does for a method."""
    base.requires_grad_(False)
    if optimizer is None:
        trainables = [p for group in adapter_set.parameter_groups() for p in group.parameters]
        optimizer = torch.optim.AdamW(trainables, lr=1e-2)
    for step in range(first, first + steps):
        backward(base, adapter_set)
        adapter_set.on_backward()
        optimizer.step()
        adapter_set.on_step(step)
        for parameter in adapter_set.parameters():
            parameter.grad = None
    return optimizer


def backward(base: Base, adapter_set: AdapterSet) -> None:
    loss = base().float().square().mean()
    penalty = adapter_set.regulariser()
    (loss if penalty is None else loss + penalty).backward()
