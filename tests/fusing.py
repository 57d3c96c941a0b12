"""A small net in fp64, adapters on it, and fusions of them: what the tests of ways to fuse share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.fusion.fuse import Changes, Concept, as_adapter, changes_of, fused_deltas
from adapters.fusion.grams import gathering
from adapters.fusion.report import FusionReport, report_on
from adapters.fusion.way import FusionOptions, LayerGrams, find_way
from adapters.inject import attach
from adapters.registry import make_spec

TARGETS = "conv, linear"
ALL = 1000
"""Samples, more than there are positions."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(6, 16, 3, padding=1), nn.Linear(16, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x).flatten(2).mT).tanh())


def prompts(number: int, rows: int = 5) -> Tensor:
    """Inputs that lie in a part of the space of their own."""
    draws = torch.Generator().manual_seed(10 + number)
    mix = torch.randn(6, 3, generator=draws, dtype=torch.float64)
    return torch.einsum("cr,nrhw->nchw", mix, torch.randn(rows, 3, 4, 4, generator=draws, dtype=torch.float64))


def concept(
    net: Net, number: int, method: str = "lora", weight: float = 1.0, targets: str = TARGETS, **knobs: object
) -> Concept:
    adapters = attach({"unet": net}, make_spec(method, **knobs), {"unet": targets}, seed=number)
    draws = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    adapters.detach()
    return Concept(f"subject {number}", adapters.eval(), weight)


def loras(net: Net, count: int = 2) -> list[Concept]:
    return [concept(net, number, rank=3) for number in range(count)]


def observed(net: Net, changes: Changes, samples: int = 0) -> dict[str, LayerGrams]:
    """Moments of each subject's own prompts with its adapter on, and of neutral ones with none; and sampled inputs."""
    found: list[Mapping[str, Tensor]] = []
    inputs: list[Mapping[str, Tensor]] = []
    for number, one in enumerate([*changes.concepts, None]):
        with gathering(changes.watched(), samples) as moments:
            if one is not None:
                one.adapters.attach()
            net(prompts(number))
            if one is not None:
                one.adapters.detach()
        found.append(moments.mean())
        inputs.append(moments.sampled())
    return {
        name: LayerGrams(
            [found[number][name].double() for number in present],
            found[-1][name].double(),
            [inputs[number][name] for number in (*present, -1)] if samples else (),
        )
        for name, present in changes.deltas.items()
    }


def fused(net: Net, concepts: list[Concept], how: str, **options: object) -> tuple[AdapterSet, FusionReport]:
    chosen = FusionOptions.model_validate(options)
    changes = changes_of(concepts, chosen)
    way = find_way(how)
    grams = observed(net, changes, ALL if way.samples_inputs else 0)
    deltas = fused_deltas(changes, way, chosen, grams)
    return as_adapter({"unet": net}, changes, deltas), report_on(how, changes, deltas, grams)


def with_adapters(net: Net, x: Tensor, *sets: AdapterSet) -> Tensor:
    for one in sets:
        one.attach()
    y = net(x)
    for one in sets:
        one.detach()
    return y


def weights(adapters: AdapterSet) -> dict[str, Tensor]:
    return {name: a.delta_weight(a.site.weight) for name, a in adapters.adapters.items()}


def small_net() -> Net:
    torch.manual_seed(0)
    return Net().double().requires_grad_(False)
