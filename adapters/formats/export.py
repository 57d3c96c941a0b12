"""Writing an adapter as other programs read it: the contract of a format (one a file in adapters/formats/writers)."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from adapters.adapter_set import AdapterSet
from adapters.errors import UnknownNameError
from adapters.extras import Extras
from adapters.files import AdapterCard
from adapters.plugins import import_modules

FORMATS: dict[str, type[Format]] = {}
PROGRAMS = ("A1111", "Forge", "ComfyUI", "SwarmUI", "InvokeAI", "kohya_ss", "diffusers")
_SDXL_SIDE = 1024
"""Pixels, where a card says nothing."""


@dataclass(frozen=True)
class Source:
    """What is to be written; the set need not be attached."""

    adapters: AdapterSet
    components: Mapping[str, nn.Module]
    """The base's models by their names in the pipeline; a format of whole models wants "vae", too."""
    card: AdapterCard


@dataclass(frozen=True)
class Exported:
    """What became of an adapter."""

    error: float
    """The largest relative error of a layer: 0 where every change has the format's form."""
    layers: int
    left_out: tuple[str, ...]
    """Layers, biases, norms and words that the format has no name for."""


class Format(ABC):
    """`class Kohya(Format, name="kohya")` registers it; without a name it is a base of several."""

    whole_model: ClassVar[bool] = False
    """Whether the base's weights go into the file, too: they are then best loaded as they will be stored."""

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None and FORMATS.setdefault(name, cls) is not cls:
            raise TypeError(f"two formats are called {name!r}")

    @abstractmethod
    def read_by(self, extras: Extras) -> dict[str, str]:
        """Program (of PROGRAMS) → "yes", or what to know, of a file that holds these extras."""

    @abstractmethod
    def save(self, path: str | os.PathLike[str], source: Source, rank: int, dtype: torch.dtype) -> Exported:
        """Writes the file at once or not at all; `rank` tells changes that lack the format's form."""


def modelspec(card: AdapterCard, architecture: str) -> dict[str, str]:
    """The header's texts by Stability's ModelSpec 1.0.1, but for the hash."""
    side = card.resolution or _SDXL_SIDE
    found = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": "https://github.com/Stability-AI/generative-models",
        "title": card.trigger or "adapter",
        "date": card.created,
        "trigger_phrase": card.trigger,
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if card.prediction_type == "v_prediction" else "epsilon",
        "thumbnail": card.thumbnail,
    }
    return {f"modelspec.{name}": text for name, text in found.items() if text}


HASH_KEY = "modelspec.hash_sha256"
"""sha256 over all bytes after the header, with 0x before it."""


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
    adapters: AdapterSet,
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
    return form.save(path, Source(adapters, components, card), rank, dtype)
