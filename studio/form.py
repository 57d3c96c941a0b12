"""The schema as a form: every setting with the control that suits it, how often people change it, and its value."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from studio import config, schema
from trainers.sources import EMBEDDED, VOCABULARY, clip_tokenizer

Level = Literal["often", "sometimes", "rarely"]
ASKED_ELSEWHERE = frozenset({"base", "data.folder", "data.captions.trigger", "data.captions.class_word"})
"""What the form's other steps ask for."""
PLACES = frozenset({"prior.folder"})
"""Paths on the server's disk: not for a form that somebody else may fill in."""
_RARE_GROUPS = ("data.checks", "objective", "validate", "validation", "optim.options", "targets.overrides")


class Knob(BaseModel):
    """One setting of the form."""

    model_config = ConfigDict(frozen=True)
    key: str
    group: str
    level: Level
    control: Literal["choice", "switch", "number", "text"]
    choices: list[str]
    takes: str
    meaning: str
    standing: str
    """What it is where nobody changes it, as the text that would set it."""


def as_text(value: Any) -> str:
    """A value as a person would write it after the equals sign of --set."""
    if value is None:
        return "null"
    if isinstance(value, str):
        plain = value and config.parse_yaml(value) == value if value.strip() == value else False
        return value if plain else yaml.safe_dump(value, default_style='"', width=10_000).strip()
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


@cache
def _preset_keys() -> frozenset[str]:
    """What any preset sets: the settings that matter most."""
    layers = [
        layer for name in config.preset_names() for family in ("embedded", "sdxl")
        for layer in config.preset_layers(name, family)
    ]  # fmt: skip
    return frozenset(key for layer in layers for key, _ in config.leaves(layer.values))


def knobs(method: str, standing: dict[str, Any]) -> Iterator[Knob]:
    """Every setting that a run with that method has, in the schema's order."""
    for key, field in schema.walk(method):
        if key in ASKED_ELSEWHERE | PLACES:
            continue
        yield knob_of(key, field, standing.get(key), _level(key))


def knob_of(key: str, field: FieldInfo, standing: Any, level: Level = "sometimes") -> Knob:
    """A field of the schema, which is `standing` where nobody changes it."""
    described = schema.describe(key, field)
    return Knob(
        key=key,
        group=key.partition(".")[0] if "." in key else "run",
        level=level,
        control=_control(key, field),
        choices=_choices(key, field),
        takes=described.takes,
        meaning=described.meaning,
        standing=as_text(standing),
    )


def _level(key: str) -> Level:
    if key in _preset_keys() or key in ("adapter.method", "data.resolution", "sample.every", "sample.prompts"):
        return "often"
    return "rarely" if key.startswith(_RARE_GROUPS) or key.count(".") > 1 else "sometimes"


def _control(key: str, field: FieldInfo) -> Literal["choice", "switch", "number", "text"]:
    if _choices(key, field):
        return "choice"
    if field.annotation is bool:
        return "switch"
    numeric = field.annotation is int or field.annotation is float
    return "number" if numeric else "text"


def _choices(key: str, field: FieldInfo) -> list[str]:
    if key == "adapter.method":
        from adapters.registry import REGISTRY

        return sorted(REGISTRY)
    if get_origin(field.annotation) is Literal:
        return [str(value) for value in get_args(field.annotation)]
    return []


@cache
def _tokenizer(folder: Path | None) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder) if folder is not None else clip_tokenizer(VOCABULARY, "!")


def pieces(word: str, base: str) -> list[str]:
    from trainers.text import split_tokens

    folder = EMBEDDED if base == "embedded" else Path(base).expanduser()
    own = folder / "tokenizer"
    return split_tokens(_tokenizer(own if own.is_dir() else None), word)
