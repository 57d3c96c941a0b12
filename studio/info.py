"""`studio info` and `studio adapters`: what a file says of itself, and which methods there are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adapters.adapter_set import LayerOverride
from adapters.anchors import INITIALISATIONS, Initialisation
from adapters.base import Adapter
from adapters.errors import MissingError
from adapters.extras import extras_named
from adapters.files import AdapterCard, AdapterHeader
from adapters.formats.foreign import ForeignFile, kinds_in
from adapters.formats.open import open_adapter
from adapters.registry import REGISTRY
from studio.progress import size
from studio.recipe import read_recipes
from studio.sampling import adapter_path
from studio.schema import describe
from trainers.rules import NONE, RULES, Rule

_TOLD_APART = ("thumbnail", "concepts")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def describe_file(given: Path) -> Iterator[str]:
    """Lines on an adapter file (or a run's folder), or the recipes in a PNG."""
    path = adapter_path(given)
    if not path.exists():
        raise MissingError(f"There is no file {path}.", "Check the path.")
    with path.open("rb") as file:
        is_picture = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
    if is_picture:
        return _describe_picture(path)
    file = open_adapter(path)
    return _describe_foreign(path, file) if isinstance(file, ForeignFile) else _describe_adapter(path, file.header)


def _describe_picture(path: Path) -> Iterator[str]:
    found = read_recipes(path)
    if len(found) > 1:
        yield f"{path}: a grid of {len(found)} pictures."
    for recipe in found:
        yield recipe.as_text()
        for use in recipe.adapters:
            yield f"  {use.file} {use} (sha256 {use.sha256})"
        yield f"  base {recipe.base} (hash {recipe.base_hash})"


def _describe_foreign(path: Path, file: ForeignFile) -> Iterator[str]:
    numbers = sum(tensor.numel() for tensor in file.tensors.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in kinds_in(file).items())
    yield f"{path}: another program's adapter, {numbers:,} numbers, {size(path.stat().st_size)}"
    yield f"  layers: {kinds}"
    yield from (f"  {name.replace('_', ' ')}: {_value(value)}" for name, value in _card(file.card).items())


def _describe_adapter(path: Path, header: AdapterHeader) -> Iterator[str]:
    method = REGISTRY[header.spec.method]
    numbers = sum(math.prod(shape) for shape in header.shapes.values())
    yield f"{path}: {method.title}, {numbers:,} numbers in {len(header.shapes)} tensors, {size(path.stat().st_size)}"
    knobs = ", ".join(f"{name} {_value(value)}" for name, value in _knobs(header.spec).items())
    yield f"  knobs: {knobs}"
    yield "  learnt layers: " + "; ".join(f"{part}: {target}" for part, target in header.targets.items())
    yield from (f"  but {_override(override)}" for override in header.overrides)
    vectors, words = extras_named(header.shapes)
    if vectors:
        yield f"  biases and norms: {len(vectors)}"
    if words:
        yield f"  words with embeddings: {', '.join(words)}"
    yield from (f"  {name.replace('_', ' ')}: {_value(value)}" for name, value in _card(header.card).items())
    yield from (f"  made of: {one.trigger} {one.class_word} × {one.weight:g}" for one in header.card.concepts)
    yield from (f"  warning: {text}" for text in card_warnings(header))


def _override(override: LayerOverride) -> str:
    knobs = [f"{name} {_value(value)}" for name, value in override.adapter.items()]
    rate = [] if override.learning_rate is None else [f"learning rate {override.learning_rate:g}"]
    return f"{override.component}: {override.layers}: " + ", ".join(knobs + rate)


def _knobs(spec: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in spec.model_dump().items() if name != "method"}


def _card(card: AdapterCard) -> dict[str, Any]:
    return {name: value for name, value in card.model_dump().items() if value and name not in _TOLD_APART}


def _value(value: Any) -> str:
    if value is None:
        return "default"
    return str(value).lower() if isinstance(value, bool) else str(value)


def card_warnings(header: AdapterHeader) -> Iterator[str]:
    """What somebody who wants to use the file should know."""
    card = header.card
    if not card.trigger:
        yield "it does not say its trigger word"
    if not card.base_hash:
        yield "it does not say which base it was made on"
    elif card.base not in ("embedded", "") and card.base.startswith(("/", "~", ".")) and not Path(card.base).exists():
        yield f"its base {card.base} is not on this machine"


def methods() -> list[dict[str, Any]]:
    """Every registered method: name, title, paper, equation and knobs."""
    return [_method(name, REGISTRY[name]) for name in sorted(REGISTRY)]


def _method(name: str, method: type[Adapter]) -> dict[str, Any]:
    knobs = [describe(knob, field) for knob, field in method.spec_type.model_fields.items() if knob != "method"]
    return {
        "name": name,
        "title": method.title,
        "paper": method.paper,
        "equation": method.equation,
        "knobs": [{"name": k.name, "takes": k.takes, "default": k.default, "meaning": k.meaning} for k in knobs],
    }


def starts() -> list[dict[str, str]]:
    """What `adapter.init` chooses from, besides gaussian."""
    return [{"name": name, **_told(start)} for name, start in sorted(INITIALISATIONS.items())]


def scales() -> list[dict[str, str]]:
    """What the product of two factors is multiplied by."""
    rslora = {"title": "rsLoRA", "paper": "arXiv 2312.03732", "equation": "s = α/√r in the place of α/r"}
    return [{"name": "rslora", **rslora, "key": "adapter.rank_stabilized=true"}]


def rules() -> list[dict[str, str]]:
    """What `optim.rule` chooses from, besides none."""
    return [{"name": name, **_told(rule)} for name, rule in sorted(RULES.items()) if name != NONE]


def _told(kind: type[Initialisation] | type[Rule]) -> dict[str, str]:
    return {"title": kind.title, "paper": kind.paper, "equation": kind.equation}


def adapters_json() -> str:
    """Methods, and what goes with any of them."""
    whole = {"methods": methods(), "initialisations": starts(), "scales": scales(), "rules": rules()}
    return json.dumps(whole, indent=2, ensure_ascii=False)


def adapters_text() -> Iterator[str]:
    """A paragraph a method, start, scale and rule."""
    for method in methods():
        yield from _paragraph(method, method["name"])
        for knob in method["knobs"]:
            yield f"    adapter.{knob['name']} ({knob['takes']}; default {knob['default']}): {knob['meaning']}"
    for start in starts():
        yield from _paragraph(start, f"adapter.init={start['name']}")
    for scale in scales():
        yield from _paragraph(scale, scale["key"])
    for rule in rules():
        yield from _paragraph(rule, f"optim.rule={rule['name']}")


def _paragraph(entry: Mapping[str, Any], name: str) -> Iterator[str]:
    yield f"{name}: {entry['title']} ({entry['paper']})"
    yield f"    {entry['equation']}"
