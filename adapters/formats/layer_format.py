"""Formats that hold one layer's tensors under its stem: what kohya's, LyCORIS's and PEFT's have in common."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from adapters.atomic import atomic_path
from adapters.base import Adapter
from adapters.errors import UserInputError
from adapters.extras import Extras
from adapters.files import AdapterCard
from adapters.formats.export import HASH_KEY, Exported, Format, Source, modelspec
from adapters.fusion.deltas import LayerDelta, delta_of
from adapters.layer import master
from adapters.safe import refuse_nonfinite
from adapters.sites import Site

_ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"


@dataclass(frozen=True)
class Written:
    """A file's tensors, and what they leave out."""

    tensors: dict[str, Tensor]
    rank: int
    error: float
    """The largest relative error of a layer."""


class LayerFormat(Format):
    """A format whose file is a dictionary of small tensors."""

    @abstractmethod
    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        """Layer's path → its stem."""

    @abstractmethod
    def write(self, layers: Mapping[str, Adapter], rank: int) -> Written:
        """The tensors of every layer by its stem."""

    def beside(self, extras: Extras, components: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors of biases, norms and words, and what of these cannot be said: everything, unless a format can."""
        return {}, [*extras.vectors, *extras.words]

    def metadata(self, card: AdapterCard, rank: int, digest: str) -> dict[str, str]:
        """The header's texts; `digest` is the sha256 of what follows the header."""
        return modelspec(card, _ARCHITECTURE) | {HASH_KEY: f"0x{digest}"}

    def save(self, path: str | os.PathLike[str], source: Source, rank: int, dtype: torch.dtype) -> Exported:
        stems = {
            f"{component}.{layer}": stem
            for component in source.adapters.targets
            for layer, stem in self.names(component, source.components[component]).items()
        }
        layers = {stems[name]: adapter for name, adapter in source.adapters.adapters.items() if name in stems}
        nameless = [name for name in source.adapters.adapters if name not in stems]
        for adapter in layers.values():
            if adapter.site.groups > 1:
                raise UserInputError(f"{adapter.site.name} has groups, which such files do not know.", "Leave it out.")
        if not layers:
            raise UserInputError("The format has a name for none of this adapter's layers.", "Choose another --format.")
        written = self.write(layers, rank)
        beside, unsaid = self.beside(source.adapters.extras, source.components)
        tensors = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in (written.tensors | beside).items()}
        refuse_nonfinite(tensors, "This adapter")
        with atomic_path(path) as part:
            save_file(tensors, part, self.metadata(source.card, written.rank, _digest(tensors)))
        return Exported(written.error, len(layers), (*nameless, *unsaid))


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of a file's bytes after the header: the hash of ModelSpec, and the one that A1111 goes by."""
    raw = save(tensors)
    return hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def pairs_of(layers: Mapping[str, Adapter], rank: int) -> dict[str, LayerDelta]:
    """Every layer's change as a pair of factors."""
    return {stem: delta_of(adapter, master(adapter.site.weight), rank) for stem, adapter in layers.items()}


def shaped(site: Site, delta: LayerDelta) -> tuple[Tensor, Tensor]:
    """(up, down) as layers of their own have their weights: 4-D for a convolution."""
    if site.kind == "linear":
        return delta.up, delta.down
    return delta.up[:, :, None, None], delta.down.unflatten(1, tuple(site.shape[1:]))
