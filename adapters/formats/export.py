"""Writing an adapter as other programs read it."""

from __future__ import annotations

import hashlib
import json
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
from adapters.errors import UnknownNameError, UserInputError
from adapters.files import AdapterCard
from adapters.formats.names import diffusers_names, kohya_names
from adapters.fusion.deltas import LayerDelta, delta_of
from adapters.layer import master
from adapters.safe import refuse_nonfinite

FORMATS: dict[str, type[Format]] = {}
_BASE_VERSION = "sdxl_base_v1-0"
"""A1111 takes a file for SD 1 unless this begins with sdxl_."""


@dataclass(frozen=True)
class Exported:
    """What a format's file leaves out: the largest relative error of a layer, and layers that it has no name for."""

    error: float
    left_out: tuple[str, ...]
    layers: int


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
    def tensors(self, stem: str, delta: LayerDelta, shape: torch.Size) -> dict[str, Tensor]:
        """One layer's tensors; factors are 4-D for a convolution's `shape`."""

    def metadata(self, deltas: Mapping[str, LayerDelta], card: AdapterCard) -> dict[str, str]:
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


class Kohya(Format, name="kohya"):
    """Flattened sgm names, 2-D and 4-D factors, one alpha a layer: what loads nearly everywhere."""

    read_by: ClassVar[Mapping[str, str]] = {
        "A1111, Forge": "yes", "ComfyUI": "yes", "InvokeAI": "yes", "diffusers": "yes", "kohya_ss": "yes",
    }  # fmt: skip

    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        return kohya_names(component, model)

    def tensors(self, stem: str, delta: LayerDelta, shape: torch.Size) -> dict[str, Tensor]:
        up, down = _shaped(delta, shape)
        alpha = torch.tensor(float(delta.rank), dtype=up.dtype)
        return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}

    def metadata(self, deltas: Mapping[str, LayerDelta], card: AdapterCard) -> dict[str, str]:
        rank = str(max(delta.rank for delta in deltas.values()))
        found = {
            "ss_base_model_version": _BASE_VERSION,
            "ss_network_module": "networks.lora",
            "ss_network_dim": rank,
            "ss_network_alpha": rank,
            "ss_output_name": card.trigger or "adapter",
            "ss_v2": "False",
        }
        if card.trigger:
            found["ss_tag_frequency"] = json.dumps({card.trigger: {card.trigger: max(1, card.steps)}})
        if card.resolution:
            found["ss_resolution"] = f"({card.resolution}, {card.resolution})"
        return super().metadata(deltas, card) | found


class Diffusers(Format, name="diffusers"):
    """PEFT's names. Layers share one rank, the smaller filled up with zeros: readers take alpha for the rank of all."""

    read_by: ClassVar[Mapping[str, str]] = {
        "diffusers": "yes", "ComfyUI": "no: it loads nothing of it", "A1111, Forge": "no", "InvokeAI": "no",
        "kohya_ss": "no",
    }  # fmt: skip

    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        return diffusers_names(component, model)

    def tensors(self, stem: str, delta: LayerDelta, shape: torch.Size) -> dict[str, Tensor]:
        up, down = _shaped(delta, shape)
        return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}


def _shaped(delta: LayerDelta, shape: torch.Size) -> tuple[Tensor, Tensor]:
    if len(shape) == 2:
        return delta.up, delta.down
    return delta.up[:, :, None, None], delta.down.unflatten(1, tuple(shape[1:]))


def find_format(name: str) -> Format:
    """The format called `name`. Raises UnknownNameError with the nearest."""
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
    """Writes a plain LoRA in the format, at once or not at all; exact up to `dtype` where the method has factors.

    Args:
        rank: by which a change without factors is told (DoRA, OFT, LoKr, …).

    Raises:
        UserInputError: a layer has groups, which no format of LoRA has.
    """
    deltas = {name: delta_of(a, master(a.site.weight), rank) for name, a in adapter_set.adapters.items()}
    if isinstance(form, Diffusers):
        deltas = _of_one_rank(deltas)
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    for component in adapter_set.targets:
        stems = form.names(component, components[component])
        for name, delta in deltas.items():
            owner, layer = name.split(".", 1)
            if owner != component:
                continue
            site = adapter_set.adapters[name].site
            if site.groups > 1:
                raise UserInputError(f"{name} has {site.groups} groups, which LoRA files do not know.", "Leave it out.")
            if layer not in stems:
                left_out.append(name)
                continue
            tensors |= form.tensors(stems[layer], delta, site.shape)
    tensors = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in tensors.items()}
    refuse_nonfinite(tensors, "This adapter")
    metadata = form.metadata(deltas, card) | {"modelspec.hash_sha256": "0x" + hashlib.sha256(save(tensors)).hexdigest()}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata)
    return Exported(max(delta.error for delta in deltas.values()), tuple(left_out), len(deltas) - len(left_out))


def _of_one_rank(deltas: Mapping[str, LayerDelta]) -> dict[str, LayerDelta]:
    rank = max(delta.rank for delta in deltas.values())
    found: dict[str, LayerDelta] = {}
    for name, delta in deltas.items():
        more = rank - delta.rank
        up, down = nn.functional.pad(delta.up, (0, more)), nn.functional.pad(delta.down, (0, 0, 0, more))
        found[name] = LayerDelta(up, down, delta.error)
    return found
