"""Another program's file as one of ours: in factors that are saved, fused and drawn with, or whole, to be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, Knobs, knobs_told
from adapters.base import Adapter, AdapterSpec, Context
from adapters.files import AdapterCard, AdapterFile, AdapterHeader
from adapters.formats.foreign import ForeignFile
from adapters.formats.placed import Placed, PlacedLayer, place
from adapters.formats.rotated import Angles
from adapters.layer import master
from adapters.registry import make_spec


@dataclass(frozen=True)
class Converted:
    """What became of a file."""

    file: AdapterFile
    error: float
    """The largest relative error over its layers: 0 where every change has our form."""
    left_out: tuple[str, ...]
    """What the base has no place for (placed.Placed)."""


@torch.no_grad()
def convert(foreign: ForeignFile, components: Mapping[str, nn.Module], rank: int = 64) -> Converted:
    """As a file of ours for this base: a LoRA, or a DoRA, OFT or BOFT where every layer is one.

    Args:
        components: the base's models, whose layers the stems name.
        rank: by which a change without factors (LoKr, a whole difference, DoRA of the input) is told.

    Raises:
        MismatchError: no layer of the file is one of this base, or shapes do not fit.
        FileFormatError: a layer's tensors make no sense together.
    """
    placed = place(foreign, components)
    turned = _turned(placed)
    file, error = _as_factors(placed, foreign.card, rank) if turned is None else _as_turns(placed, turned, foreign.card)
    return Converted(file, error, placed.left_out)


def _turned(placed: Placed) -> dict[str, Angles] | None:
    """Every layer's angles by its name, where all layers are rotations that ours can be."""
    turned: dict[str, Angles] = {}
    for layer in placed.layers:
        angles = layer.angles()
        if angles is None:
            return None
        turned[layer.site.name] = angles
    return turned


def _as_turns(placed: Placed, turned: Mapping[str, Angles], card: AdapterCard) -> tuple[AdapterFile, float]:
    """An OFT, or a BOFT where any layer has a gain or several levels."""
    butterfly = any(angles.is_butterfly for angles in turned.values())
    knobs = {name: angles.knobs(butterfly) for name, angles in turned.items()}
    tensors = {name: angles.tensors(butterfly) for name, angles in turned.items()}
    file = _file("boft" if butterfly else "oft", knobs, tensors, placed, card)
    return file, max(angles.error for angles in turned.values())


def _as_factors(placed: Placed, card: AdapterCard, rank: int) -> tuple[AdapterFile, float]:
    """A LoRA, or a DoRA where every layer has factors and one scale an output row."""
    all_dora = all(layer.is_dora for layer in placed.layers)
    told = {layer.site.name: layer.told(rank, all_dora) for layer in placed.layers}
    knobs: dict[str, Knobs] = {name: (("rank", len(layer.down)),) for name, layer in told.items()}
    tensors = {name: layer.tensors() for name, layer in told.items()}
    file = _file("dora" if all_dora else "lora", knobs, tensors, placed, card)
    return file, max(layer.error for layer in told.values())


def _file(
    method: str,
    knobs: Mapping[str, Knobs],
    layers: Mapping[str, Mapping[str, Tensor]],
    placed: Placed,
    card: AdapterCard,
) -> AdapterFile:
    """`knobs` and `layers` by layers' names, "unet.down_blocks.…"."""
    usual, overrides = knobs_told(knobs)
    tensors = {f"{name}.{factor}": tensor for name, found in layers.items() for factor, tensor in found.items()}
    tensors |= placed.extras.tensors()
    header = AdapterHeader(
        spec=make_spec(method, **usual),
        targets=_targets(placed),
        card=card,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        overrides=tuple(overrides),
    )
    return AdapterFile(tensors, header)


def _targets(placed: Placed) -> dict[str, str]:
    targets: dict[str, list[str]] = {}
    for layer in placed.layers:
        component, path = layer.site.name.split(".", 1)
        targets.setdefault(component, []).append(path)
    return {component: ", ".join(paths) for component, paths in targets.items()}


class WholeLayer(Adapter):
    """Another program's layer as it is, computed from the file's tensors each time: for merging, not for sampling."""

    def __init__(self, placed: PlacedLayer, spec: AdapterSpec) -> None:
        super().__init__(placed.site, placed.site.weight, spec, Context(0, ()))
        self.placed = placed

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        return self.site.apply_down(x, self.placed.whole(master(self.site.weight)).to(x.dtype))

    @torch.no_grad()
    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.site.as_weight(self.placed.whole(weight))


def whole_set(placed: Placed, components: Mapping[str, nn.Module]) -> AdapterSet:
    """A set that has nothing to save and loses nothing: attached, it can be merged, a layer at a time."""
    spec = AdapterSpec(method="whole")
    adapters = {layer.site.name: WholeLayer(layer, spec) for layer in placed.layers}
    made = AdapterSet(spec, _targets(placed), adapters)
    made.bind(placed.extras, components)
    return made
