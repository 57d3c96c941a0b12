"""Adapter files of other programs, as they lie on the disk: whose tensors are whose, and what the header says."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from adapters.errors import FileFormatError
from adapters.files import AdapterCard
from adapters.formats.beside import BUNDLE
from adapters.formats.layers import SUFFIXES, kind_of
from adapters.formats.peft_options import PeftOptions, peft_options
from adapters.safe import Shapes, read_safe_header, read_safe_tensors

Value = TypeVar("Value")


@dataclass(frozen=True)
class ForeignFile:
    """A file that another program wrote: read and checked, not yet told what its layers are."""

    path: str
    tensors: Mapping[str, Tensor]
    card: AdapterCard
    options: PeftOptions = field(default_factory=PeftOptions)

    def by_stem(self) -> dict[str, dict[str, Tensor]]:
        """Stem → part → tensor."""
        return _by_stem(self.tensors)

    def unknown(self) -> list[str]:
        """Names of tensors of kinds that are not known here."""
        return [name for name in self.tensors if _split(name) is None and not name.startswith(BUNDLE)]


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Whether the file's tensors are named as other programs name theirs. Raises as read_safe_header does."""
    _, shapes = read_safe_header(path)
    return any(_split(name) is not None for name in shapes)


def read_foreign(path: str | os.PathLike[str]) -> ForeignFile:
    """Raises what safe.read_safe_tensors raises, and FileFormatError for a file without adapters."""
    metadata, shapes = _header(path)
    card = _card(metadata, _words(shapes))
    return ForeignFile(str(path), read_safe_tensors(path), card, peft_options(Path(path), metadata))


def read_foreign_facts(path: str | os.PathLike[str]) -> tuple[str, AdapterCard]:
    """What most layers are ("lora") and the card, without reading a tensor. Raises as read_foreign does."""
    metadata, shapes = _header(path)
    kinds = Counter(kind_of(parts.keys()) for parts in _by_stem(shapes).values())
    return kinds.most_common(1)[0][0].lower(), _card(metadata, _words(shapes))


def kinds_in(file: ForeignFile) -> Counter[str]:
    """How many layers of which kind a file has, and how many words with embeddings."""
    kinds = Counter(kind_of(found.keys()) for found in file.by_stem().values())
    return kinds + Counter({"embedded word": len(set(_words(file.tensors)))})


def _header(path: str | os.PathLike[str]) -> tuple[dict[str, str], Shapes]:
    metadata, shapes = read_safe_header(path)
    if not _by_stem(shapes):
        raise FileFormatError(
            f"{path} holds no adapter that is known here.",
            "Choose a LoRA, DoRA, LoKr, LoHa or OFT file for SDXL (.safetensors).",
        )
    return metadata, shapes


def _by_stem(named: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    parts: dict[str, dict[str, Value]] = {}
    for name, value in named.items():
        if (split := _split(name)) is not None:
            parts.setdefault(split[0], {})[split[1]] = value
    return parts


def _words(names: Iterable[str]) -> list[str]:
    return [name.removeprefix(BUNDLE).partition(".")[0] for name in names if name.startswith(BUNDLE)]


def _split(name: str) -> tuple[str, str] | None:
    """A tensor's name as stem and part."""
    if name.startswith(BUNDLE):
        return None
    for suffix, part in SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), part
    return None


def _card(metadata: Mapping[str, str], words: Iterable[str]) -> AdapterCard:
    """What other programs' headers say that ours says, too; `words` have embeddings in the file."""
    trigger = metadata.get("modelspec.trigger_phrase", "")
    v_prediction = metadata.get("modelspec.prediction_type", "") in ("v", "v_prediction")
    title = metadata.get("modelspec.title", metadata.get("ss_output_name", ""))
    return AdapterCard(
        trigger=trigger or next(iter(words), "") or _most_frequent_tag(metadata.get("ss_tag_frequency", "")) or title,
        created=metadata.get("modelspec.date", ""),
        thumbnail=metadata.get("modelspec.thumbnail", ""),
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
