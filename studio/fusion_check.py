"""What can be said of adapters that are to be fused from their files alone: in moments, before hours are spent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from adapters.errors import FileFormatError
from adapters.formats.open import read_facts
from adapters.fusion.way import Candidate
from studio.library import Library

_COLUMNS = ".columns"
"""How the buffer ends that holds a layer's columns (adapters.columns)."""


class Facts(BaseModel):
    """What decides whether adapters go together, besides what the library knows of them."""

    model_config = ConfigDict(frozen=True)
    schedule: str
    """How they were trained to denoise (trainers.sdxl.Base.set_schedule): all must agree."""
    triggers: list[str]
    fused: bool


def facts(path: Path) -> Facts:
    """By the header alone. Raises what adapters.formats.open.read_facts raises."""
    _, card = read_facts(path)
    zero = ", zero terminal SNR" if card.zero_terminal_snr else ""
    return Facts(
        schedule=f"{card.prediction_type}{zero}" if card.base_hash else "",
        triggers=[trigger for trigger, _ in card.subjects],
        fused=bool(card.concepts),
    )


def candidates(library: Library, ids: Sequence[str], weights: Sequence[float]) -> list[Candidate]:
    """Those adapters as adapters.fusion.way.Way.refusal takes them."""
    found: list[Candidate] = []
    for id, weight in zip(ids, weights, strict=True):
        entry = library.get_adapter(id)
        own = " ".join(filter(None, (entry.trigger, entry.class_word)))
        name = entry.name if entry.parents or not own else own
        found.append(Candidate(name, entry.method, weight, columns_of(library.path_of(entry.id))))
    return found


@lru_cache(maxsize=64)
def columns_of(path: Path) -> dict[str, frozenset[int]]:
    """Layer → the columns that a spectral adapter learnt on; nothing for other methods. Reads these buffers alone."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(_COLUMNS)]  # noqa: SIM118
            return {name.removesuffix(_COLUMNS): frozenset(file.get_tensor(name).tolist()) for name in names}
    except SafetensorError as error:
        raise FileFormatError(f"{path} is damaged: {error}.", "Copy the file again.") from error


def warnings(found: Sequence[Candidate]) -> list[str]:
    """What is no reason to refuse them, but to know of."""
    told: list[str] = []
    for first, second in combinations(found, 2):
        if layers := first.shared_with(second):
            told.append(
                f"{first.name} and {second.name} learnt on the same columns of {len(layers)} layers and will mix in "
                "one file. Teach one of them again with adapter.slot = auto, or give each its own region."
            )
    return told
