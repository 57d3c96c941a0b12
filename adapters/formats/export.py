"""Writing an adapter as other programs read it: the contract of a format, and how a file is made of one."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.atomic import atomic_path
from adapters.base import Adapter
from adapters.errors import UnknownNameError, UserInputError
from adapters.files import AdapterCard
from adapters.fusion.deltas import LayerDelta, delta_of
from adapters.layer import master
from adapters.plugins import import_modules
from adapters.safe import refuse_nonfinite
from adapters.sites import Site

FORMATS: dict[str, type[Format]] = {}


@dataclass(frozen=True)
class Written:
    """A file's tensors, and what they leave out."""

    tensors: dict[str, Tensor]
    rank: int
    error: float
    """The largest relative error of a layer: 0 where every change has the format's form."""


@dataclass(frozen=True)
class Exported:
    """What became of an adapter: its error, layers written, and those that the format has no name for."""

    error: float
    layers: int
    left_out: tuple[str, ...]


class Format(ABC):
    """`class Kohya(Format, name="kohya")` registers it."""

    read_by: ClassVar[Mapping[str, str]]
    """Program → "yes", or what to know."""

    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        if FORMATS.setdefault(name, cls) is not cls:
            raise TypeError(f"two formats are called {name!r}")

    @abstractmethod
    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        """Layer's path → its stem."""

    @abstractmethod
    def write(self, layers: Mapping[str, Adapter], rank: int) -> Written:
        """The tensors of every layer by its stem; `rank` tells changes that lack the format's form."""

    def metadata(self, card: AdapterCard, rank: int) -> dict[str, str]:
        """The header's texts (modelspec 1.0.1)."""
        found = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.title": card.trigger or "adapter",
            "modelspec.date": card.created,
            "modelspec.trigger_phrase": card.trigger,
            "modelspec.prediction_type": "v" if card.prediction_type == "v_prediction" else "epsilon",
            "modelspec.thumbnail": card.thumbnail,
        }
        if card.resolution:
            found["modelspec.resolution"] = f"{card.resolution}x{card.resolution}"
        return {name: text for name, text in found.items() if text}


def pairs_of(layers: Mapping[str, Adapter], rank: int) -> dict[str, LayerDelta]:
    """Every layer's change as a pair of factors."""
    return {stem: delta_of(adapter, master(adapter.site.weight), rank) for stem, adapter in layers.items()}


def shaped(site: Site, delta: LayerDelta) -> tuple[Tensor, Tensor]:
    """(up, down) as layers of their own have their weights: 4-D for a convolution."""
    if site.kind == "linear":
        return delta.up, delta.down
    return delta.up[:, :, None, None], delta.down.unflatten(1, tuple(site.shape[1:]))


def find_format(name: str) -> Format:
    """The format called `name`. Raises UnknownNameError with the nearest."""
    from adapters.formats import writers

    import_modules(writers)
    if name not in FORMATS:
        raise UnknownNameError("format", name, list(FORMATS))
    return FORMATS[name]()


@torch.no_grad()
def export(
    path: str | os.PathLike[str],
    adapter_set: AdapterSet,
    components: Mapping[str, nn.Module],
    card: AdapterCard,
    form: Format,
    *,
    rank: int = 64,
    dtype: torch.dtype = torch.float16,
) -> Exported:
    """Writes the set in the format, at once or not at all; exact up to `dtype` where its changes have that form.

    Args:
        rank: by which a change without factors is told (DoRA, OFT, …).

    Raises:
        UserInputError: a layer has groups, which these formats do not know, or none has a name in the format.
    """
    stems = {
        f"{component}.{layer}": stem
        for component in adapter_set.targets
        for layer, stem in form.names(component, components[component]).items()
    }
    layers = {stems[name]: adapter for name, adapter in adapter_set.adapters.items() if name in stems}
    left_out = tuple(name for name in adapter_set.adapters if name not in stems)
    for adapter in layers.values():
        if adapter.site.groups > 1:
            raise UserInputError(f"{adapter.site.name} has groups, which such files do not know.", "Leave it out.")
    if not layers:
        raise UserInputError("The format has a name for none of this adapter's layers.", "Choose another --format.")
    written = form.write(layers, rank)
    tensors = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in written.tensors.items()}
    refuse_nonfinite(tensors, "This adapter")
    digest = hashlib.sha256(save(tensors)).hexdigest()
    with atomic_path(path) as part:
        save_file(tensors, part, form.metadata(card, written.rank) | {"modelspec.hash_sha256": f"0x{digest}"})
    return Exported(written.error, len(layers), left_out)
