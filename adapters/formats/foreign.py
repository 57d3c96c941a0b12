"""Adapter files of other programs, layer by layer: LoRA in every spelling, DoRA, LoKr, LoHa, whole differences."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.adapter_set import ranks_told
from adapters.errors import FileFormatError, MismatchError
from adapters.files import AdapterCard, AdapterFile, AdapterHeader
from adapters.formats.layers import SUFFIXES, Told, kind_of, layer_of, per_input
from adapters.formats.names import known_sites
from adapters.layer import master
from adapters.registry import make_spec
from adapters.safe import read_safe_header, read_safe_tensors

_FIX = "Choose a LoRA, DoRA, LoKr or LoHa file for SDXL (.safetensors)."


@dataclass(frozen=True)
class ForeignFile:
    """A file that another program wrote: read and checked, not yet told what its layers are."""

    path: str
    tensors: Mapping[str, Tensor]
    card: AdapterCard


@dataclass(frozen=True)
class Converted:
    """What became of it."""

    file: AdapterFile
    error: float
    """The largest relative error over its layers: 0 where every change has factors."""
    left_out: tuple[str, ...]
    """Stems that no layer of this base has."""


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Whether the file's tensors are named as other programs name theirs. Raises as read_safe_header does."""
    _, shapes = read_safe_header(path)
    return any(_split(name) is not None for name in shapes)


def read_foreign(path: str | os.PathLike[str]) -> ForeignFile:
    """Raises what safe.read_safe_tensors raises, and FileFormatError for a file without adapters."""
    metadata, shapes = read_safe_header(path)
    if not any(_split(name) is not None for name in shapes):
        raise FileFormatError(f"{path} holds no adapter that is known here.", _FIX)
    return ForeignFile(str(path), read_safe_tensors(path), _card(metadata))


def kinds_in(file: ForeignFile) -> Counter[str]:
    """How many layers of which kind a file has."""
    return Counter(kind_of(found.keys()) for found in _by_stem(file).values())


@torch.no_grad()
def convert(foreign: ForeignFile, components: Mapping[str, nn.Module], rank: int = 64) -> Converted:
    """As a file of ours for this base: a LoRA, or a DoRA where every layer is one.

    Args:
        components: the base's models, whose layers the stems name.
        rank: by which a change without factors (LoKr, a whole difference, DoRA of the input) is told.

    Raises:
        MismatchError: no layer of the file is one of this base, or shapes do not fit.
        FileFormatError: a layer's tensors make no sense together.
    """
    known, parts = known_sites(components), _by_stem(foreign)
    sites = {stem: known[stem] for stem in parts if stem in known}
    left_out = tuple(sorted(set(parts) - set(sites)))
    if not sites:
        raise MismatchError(
            f"None of the {len(parts)} layers in {foreign.path} is one of this base (such as {left_out[0]}).",
            "It was made for another kind of model (SD 1.5?); choose one for SDXL.",
        )
    keep_magnitude = all("dora_scale" in found for found in parts.values()) and not any(
        per_input(site, parts[stem]["dora_scale"]) for stem, site in sites.items()
    )
    told = {
        site.name: layer_of(site, master(site.weight), parts[stem], rank, keep_magnitude)
        for stem, site in sites.items()
    }
    return Converted(_as_ours(told, foreign.card), max(layer.error for layer in told.values()), left_out)


def _by_stem(file: ForeignFile) -> dict[str, dict[str, Tensor]]:
    """Stem → part → tensor."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in file.tensors.items():
        if (split := _split(name)) is not None:
            parts.setdefault(split[0], {})[split[1]] = tensor
    return parts


def _split(name: str) -> tuple[str, str] | None:
    """A tensor's name as stem and part."""
    for suffix, part in SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), part
    return None


def _card(metadata: Mapping[str, str]) -> AdapterCard:
    """What other programs' headers say that ours says, too."""
    trigger = metadata.get("modelspec.trigger_phrase", "")
    v_prediction = metadata.get("modelspec.prediction_type", "") in ("v", "v_prediction")
    title = metadata.get("modelspec.title", metadata.get("ss_output_name", ""))
    return AdapterCard(
        trigger=trigger or _most_frequent_tag(metadata.get("ss_tag_frequency", "")) or title,
        created=metadata.get("modelspec.date", ""),
        prediction_type="v_prediction" if v_prediction else "epsilon",
    )


def _most_frequent_tag(text: str) -> str:
    """kohya's record of captions: {"folder": {"tag": count}}."""
    try:
        counts = Counter[str]()
        for folder in json.loads(text).values():
            counts.update({str(tag).strip(): int(count) for tag, count in folder.items()})
    except (ValueError, AttributeError, TypeError):
        return ""
    return counts.most_common(1)[0][0] if counts else ""


def _as_ours(told: Mapping[str, Told], card: AdapterCard) -> AdapterFile:
    magnitude = next(iter(told.values())).magnitude is not None
    rank, overrides = ranks_told({name: len(layer.down) for name, layer in told.items()})
    targets: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    prefix = "inner." if magnitude else ""
    for name, layer in told.items():
        component, path = name.split(".", 1)
        targets.setdefault(component, []).append(path)
        tensors[f"{name}.{prefix}up"], tensors[f"{name}.{prefix}down"] = layer.up, layer.down
        if layer.magnitude is not None:
            tensors[f"{name}.magnitude"] = layer.magnitude
    header = AdapterHeader(
        spec=make_spec("dora" if magnitude else "lora", rank=rank),
        targets={component: ", ".join(paths) for component, paths in targets.items()},
        card=card,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        overrides=tuple(overrides),
    )
    return AdapterFile(tensors, header)
