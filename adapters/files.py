"""Our adapter file: safetensors whose header holds everything needed to attach it again.

The tensors are those of AdapterSet.state_dict: of a spectral adapter also each layer's columns, their singular values
and vectors. The header's metadata are "format" (FORMAT), "strength" (STRENGTH), and as JSON "spec", "targets",
"overrides", "card" and, where columns of weights were learnt on, "weights". Nothing of a file is believed before it is
checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, LayerOverride
from adapters.atomic import atomic_path
from adapters.base import AdapterSpec
from adapters.columns import SpectralSpec
from adapters.errors import FileFormatError, StudioError, UserInputError
from adapters.extras import extras_in, is_extra
from adapters.inject import base_hash, build
from adapters.layer import master
from adapters.registry import parse_spec
from adapters.safe import read_safe_header, read_safe_tensors, refuse_nonfinite
from adapters.svd import Unread, weight_hash
from adapters.targets import select_sites

FORMAT = "spectral-studio-1"
STRENGTH = "W + s(W' - W)"
"""What a strength of s means, for every method: said in the file for whoever else reads it."""

StorageType = Literal["float32", "float16", "bfloat16"]
_STORED: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_FIX = "Choose an adapter.safetensors that Spectral Studio saved, or copy the file again."


class FusedConcept(BaseModel, frozen=True, extra="ignore"):
    """One of the adapters in a fused file."""

    trigger: str = ""
    class_word: str = ""
    concept: str = Field(default="", description="UUID of what it learnt (AdapterCard.concept).")
    sha256: str = Field(default="", description="sha256 of its file.")
    weight: float = 1.0


class AdapterCard(BaseModel, frozen=True, extra="ignore"):
    """What a file says about its making. Unknown fields are skipped: a later version may say more."""

    base: str = Field(default="", description="Base model: hub id, path or 'embedded'.")
    base_hash: str = Field(default="", description="sha256 of the base's weight files.")
    trigger: str = Field(default="", description="The word that stands for the subject in prompts.")
    class_word: str = Field(default="", description="What kind of thing the subject is.")
    concept: str = Field(default="", description="UUID of what was learnt: trigger, class word and pictures.")
    slots: int = Field(default=0, ge=0, description="K: how many slots of columns its layers have; 0: no columns.")
    steps: int = Field(default=0, ge=0, description="Optimizer steps trained.")
    config_hash: str = Field(default="", description="sha256 of the training configuration.")
    resolution: int = Field(default=0, ge=0, description="Pixels a side in training.")
    prediction_type: str = Field(default="epsilon", description="What the UNet predicts: epsilon or v_prediction.")
    zero_terminal_snr: bool = Field(default=False, description="Trained down to pure noise; sample with it, too.")
    created: str = Field(default="", description="Time of saving, ISO 8601.")
    studio_version: str = Field(default="", description="Version of Spectral Studio that saved it.")
    thumbnail: str = Field(default="", description="A small picture as a data: URL.")
    fused_by: str = Field(default="", description="The way to fuse, where this file was made of others.")
    concepts: tuple[FusedConcept, ...] = Field(default=(), description="What it was made of.")

    @property
    def subjects(self) -> list[tuple[str, str]]:
        """Trigger and class word of each subject that the file was taught; those without a trigger left out."""
        found = [(one.trigger, one.class_word) for one in self.concepts] or [(self.trigger, self.class_word)]
        return [(trigger, class_word) for trigger, class_word in found if trigger]


@dataclass(frozen=True)
class AdapterHeader:
    """All of a file but its numbers."""

    spec: AdapterSpec
    targets: dict[str, str]
    card: AdapterCard
    shapes: dict[str, tuple[int, ...]]
    overrides: tuple[LayerOverride, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layer → svd.weight_hash of the weight whose columns it learnt on; older files do not tell."""


@dataclass(frozen=True)
class AdapterFile:
    """A file's contents, on the CPU."""

    tensors: dict[str, Tensor]
    header: AdapterHeader

    @property
    def spec(self) -> AdapterSpec:
        return self.header.spec

    @property
    def targets(self) -> dict[str, str]:
        return self.header.targets

    @property
    def card(self) -> AdapterCard:
        return self.header.card


def save_adapter(
    path: str | os.PathLike[str], adapter_set: AdapterSet, card: AdapterCard, dtype: StorageType = "float32"
) -> None:
    """Writes the set's state at once or not at all.

    Args:
        dtype: how Parameters are stored. float32 is exact and what resume needs; the others halve the file.
            Schedule state always keeps its own dtype.

    Raises:
        DiskFullError: no room; an older file at `path` is untouched.
        FileFormatError: a factor holds NaN or infinity; nothing is written.
    """
    tensors = {name: t.cpu().contiguous() for name, t in adapter_set.file_state().items()}
    for name in adapter_set.factor_names():
        tensors[name] = tensors[name].to(_STORED[dtype])
    tensors |= {name: tensor.cpu().contiguous() for name, tensor in adapter_set.extras.tensors().items()}
    refuse_nonfinite(tensors, "This adapter")
    metadata = {
        "format": FORMAT,
        "spec": adapter_set.spec.model_dump_json(),
        "targets": json.dumps(adapter_set.targets),
        "overrides": json.dumps([override.model_dump(mode="json") for override in adapter_set.overrides]),
        "card": card.model_dump_json(),
        "strength": STRENGTH,
    }
    if isinstance(adapter_set.spec, SpectralSpec):
        sites = {name: adapter.site for name, adapter in adapter_set.adapters.items()}
        metadata["weights"] = json.dumps({name: weight_hash(master(site.weight)) for name, site in sites.items()})
    with atomic_path(path) as part:
        save_file(tensors, part, metadata)


def read_header(path: str | os.PathLike[str]) -> AdapterHeader:
    """Reads and checks the header alone; cheap enough for a library of files.

    Raises:
        MissingError: no such file.
        FileFormatError: not safetensors, truncated, not ours, or a header that makes no sense.
    """
    metadata, shapes = read_safe_header(path)
    if metadata.get("format") != FORMAT:
        raise FileFormatError(f"{path} is a safetensors file, but not an adapter of Spectral Studio.", _FIX)
    try:
        targets = cast(dict[str, str], json.loads(metadata["targets"]))
        return AdapterHeader(
            spec=parse_spec(json.loads(metadata["spec"])),
            targets={str(component): str(target) for component, target in targets.items()},
            card=AdapterCard.model_validate_json(metadata["card"]),
            shapes=shapes,
            overrides=tuple(LayerOverride.model_validate(one) for one in json.loads(metadata.get("overrides", "[]"))),
            weights={str(name): str(found) for name, found in json.loads(metadata.get("weights", "{}")).items()},
        )
    except StudioError as error:
        raise FileFormatError(
            f"{path} asks for an adapter that this version does not know: {error.what}",
            "Update Spectral Studio.",
        ) from error
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"The header of {path} is damaged: {error}", _FIX) from error


def load_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Reads a whole file. Raises what read_header raises, and FileFormatError for NaN or infinity in it."""
    header = read_header(path)
    return AdapterFile(read_safe_tensors(path), header)


def attach_file(
    components: Mapping[str, nn.Module],
    source: str | os.PathLike[str] | AdapterFile,
    known_hash: str | None = None,
    part: str | None = None,
) -> AdapterSet:
    """Attaches a file's adapter, in eval mode. A base it was not made on is accepted if every shape fits.

    Args:
        components: the pipeline's models; those that the file adapts must be among them.
        source: a path, or a file that was loaded already.
        known_hash: inject.base_hash of the components that training had, if known; else it is computed, which
            for SDXL reads 5 GB.
        part: groups and patterns, as in targets: only those of the file's layers are attached.

    Returns:
        The set; its `warning` is a text when the base is another than the file's.

    Raises:
        MismatchError: a layer's shape does not fit; names it. The base is then untouched.
        UserInputError: a word of `part` meets no layer of the file.
    """
    header = source.header if isinstance(source, AdapterFile) else read_header(source)
    adapter_set = build(
        components, header.spec, header.targets, seed=0, overrides=header.overrides, decomposer=Unread()
    )
    adapter_set.check_shapes({name: shape for name, shape in header.shapes.items() if not is_extra(name)})
    tensors = source.tensors if isinstance(source, AdapterFile) else read_safe_tensors(source)
    adapter_set.load_state_dict({name: tensor for name, tensor in tensors.items() if not is_extra(name)})
    adapter_set.bind(extras_in(tensors), components)
    if header.card.base_hash:
        adapter_set.warning = _other_base(header.card, known_hash or base_hash(components))
    adapter_set.attach(None if part is None else _layers_of_part(components, adapter_set, part))
    return adapter_set.eval()


def _layers_of_part(components: Mapping[str, nn.Module], adapter_set: AdapterSet, part: str) -> set[str]:
    """The set's layers that `part` names, in whichever component."""
    chosen: set[str] = set()
    for word in [word for word in part.split(",") if word.strip()] or [part]:
        named: set[str] = set()
        unknown: UserInputError | None = None
        for component in adapter_set.targets:
            try:
                named |= {site.name for site in select_sites(components[component], component, word)}
            except UserInputError as error:  # a text encoder has no such group
                unknown = unknown or error
        if unknown is not None and not named:
            raise unknown
        if named.isdisjoint(adapter_set.adapters):
            learnt = "; ".join(f"{component}: {target}" for component, target in adapter_set.targets.items())
            raise UserInputError(
                f"The part {word.strip()!r} meets no layer of this adapter.", f"Its layers are {learnt}."
            )
        chosen |= named & adapter_set.adapters.keys()
    return chosen


def _other_base(card: AdapterCard, found: str) -> str | None:
    if card.base_hash == found:
        return None
    return (
        f"This adapter was made on another base ({card.base or 'unnamed'}, hash {card.base_hash[:12]}…; this "
        f"one is {found[:12]}…) or in another precision. It fits and was attached, but pictures may differ."
    )
