"""Attaching adapters to a base model and taking them off again without a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, LayerOverride
from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import UserInputError
from adapters.layer import master
from adapters.registry import layer_type, make_spec
from adapters.sites import Site
from adapters.svd import Decomposer
from adapters.targets import select_sites


def building(
    components: Mapping[str, nn.Module],
    spec: AdapterSpec,
    targets: Mapping[str, str],
    seed: int,
    *,
    overrides: Sequence[LayerOverride] = (),
    decomposer: Decomposer | None = None,
    steps: int | None = None,
) -> Generator[tuple[int, int], None, AdapterSet]:
    """`build`, layer by layer: yields (layers done, layers in all), since some starts take a decomposition each."""
    sites: list[Site] = []
    for component, target in targets.items():
        sites += select_sites(_component(components, component), component, target)
    specs = {site.name: spec for site in sites}
    rates: dict[str, float] = {}
    for override in overrides:
        for name in _overridden(components, override, specs):
            specs[name] = overridden_spec(specs[name], override)
            if override.learning_rate is not None:
                rates[name] = override.learning_rate
    context = Context(seed, tuple(sites), decomposer=decomposer or Decomposer(), steps=steps)
    adapters: dict[str, Adapter] = {}
    for site in sites:
        with torch.no_grad():
            adapters[site.name] = layer_type(spec)(site, master(site.weight), specs[site.name], context)
        yield len(adapters), len(sites)
    return AdapterSet(spec, targets, adapters, overrides, rates)


def _component(components: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in components:
        known = ", ".join(components)
        raise UserInputError(f"The adapter wants {name}, which was not given.", f"Given were: {known}.")
    return components[name]


def _overridden(
    components: Mapping[str, nn.Module], override: LayerOverride, specs: Mapping[str, AdapterSpec]
) -> list[str]:
    """The learning layers that an override is about."""
    found = select_sites(_component(components, override.component), override.component, override.layers)
    names = [site.name for site in found if site.name in specs]
    if not names:
        raise UserInputError(
            f"The override for {override.layers!r} of {override.component} meets no layer that learns.",
            f"Widen targets.{override.component}, or leave the override out.",
        )
    return names


def overridden_spec(spec: AdapterSpec, override: LayerOverride) -> AdapterSpec:
    """`spec` with the override's knobs; UserInputError names one that the method does not have."""
    if "method" in override.adapter or "magnitude" in override.adapter:
        raise UserInputError("An override changes the knobs of a method, not the method.", "Leave method out of it.")
    return make_spec(**{**spec.model_dump(), **override.adapter})


def build(
    components: Mapping[str, nn.Module],
    spec: AdapterSpec,
    targets: Mapping[str, str],
    seed: int,
    *,
    overrides: Sequence[LayerOverride] = (),
    decomposer: Decomposer | None = None,
    steps: int | None = None,
) -> AdapterSet:
    """An adapter set that is not on the model yet: `attach` without the hooks."""
    layers = building(components, spec, targets, seed, overrides=overrides, decomposer=decomposer, steps=steps)
    while True:
        try:
            next(layers)
        except StopIteration as end:
            return end.value


def attach(
    components: Mapping[str, nn.Module],
    spec: AdapterSpec,
    targets: Mapping[str, str],
    seed: int = 0,
    *,
    overrides: Sequence[LayerOverride] = (),
    decomposer: Decomposer | None = None,
    steps: int | None = None,
) -> AdapterSet:
    """Puts an adapter of `spec` on every layer that `targets` names; the output does not change by a bit.

    Args:
        components: the models by their name in the pipeline: "unet", "text_encoder", "text_encoder_2".
        spec: the method and its knobs (registry.make_spec).
        targets: component → named groups or patterns (sites.select_sites).
        seed: each layer draws its factors from (seed, layer name), whatever the order or device.
        overrides: other knobs or learning rates for some of these layers.
        decomposer: where singular vectors come from; without one they are computed and not kept.
        steps: optimizer steps of the run, for methods with a schedule over them.

    Raises:
        UserInputError: a target matched nothing, a component was not given, a knob does not fit a layer.
        StudioError: a layer carries a merged adapter.
    """
    adapter_set = build(components, spec, targets, seed, overrides=overrides, decomposer=decomposer, steps=steps)
    adapter_set.attach()
    return adapter_set


def base_hash(components: Mapping[str, nn.Module]) -> str:
    """sha256 (hex) over the names, dtypes, shapes and bytes of all weights and buffers.

    The same base loaded in another dtype has another hash. Adapters do not count, unless merged.
    """
    tensors = [
        (f"{component}.{name}", tensor)
        for component, model in sorted(components.items())
        for name, tensor in sorted(model.state_dict().items())
    ]
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        digests = pool.map(lambda item: _tensor_digest(*item), tensors)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(raw.numpy().data)  # hashed in place, not copied
    return digest.digest()
