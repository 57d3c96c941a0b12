"""What the clerk knows of fusing: which adapters go together, the ways and their knobs, and what a report says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import StudioError, UserInputError
from adapters.fusion.report import FusionReport
from adapters.fusion.way import Candidate, FusionOptions, Way, all_ways, find_way
from studio import config, fusion_check, fusion_words
from studio.clerk import RefusedError
from studio.form import Knob, knob_of
from studio.fusing import options_of
from studio.library import Library
from studio.queue import Queue


def facts(home: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    """fusion_check.Facts of each; of a file that cannot be read, `trouble` says why."""
    library, found = Library(Path(home)), dict[str, dict[str, Any]]()
    for id in ids:
        try:
            found[id] = fusion_check.facts(library.path_of(id)).model_dump()
        except StudioError as error:
            found[id] = {"trouble": error.what}
    return found


def advice(home: str, ids: list[str], weights: list[float]) -> dict[str, Any]:
    """Every way, whether these adapters can be fused by it, and what to know of them together."""
    found = fusion_check.candidates(Library(Path(home)), ids, weights)
    order = sorted(all_ways().items(), key=lambda item: not item[1].recommended)
    return {
        "warnings": fusion_check.warnings(found),
        "ways": [_way(name, way, found) for name, way in order],
    }


def _way(name: str, way: type[Way], found: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "name": name,
        "title": way.title,
        "paper": way.paper,
        "meaning": way.meaning,
        "recommended": way.recommended,
        "refusal": way.refusal(found) if len(found) > 1 else "",
        "knobs": [_knob(key).model_dump() for key in way.knobs],
    }


def _knob(key: str) -> Knob:
    field = FusionOptions.model_fields[key]
    return knob_of(key, field, field.get_default())


def request(
    home: str, base: str, ids: list[str], weights: list[float], how: str, options: dict[str, str]
) -> dict[str, Any]:
    """A store.FuseRequest; RefusedError where the way or a knob will not do, the knobs' sentences by their keys."""
    found = fusion_check.candidates(Library(Path(home)), ids, weights)
    way = find_way(how)
    if refused := way.refusal(found):
        raise RefusedError(refused, "Choose another way.", {"how": refused})
    return {
        "kind": "fuse",
        "base": base,
        "adapters": [f"lib:{id}" for id in ids],
        "weights": weights,
        "how": how,
        "options": _options(options),
    }


def _options(texts: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, text in texts.items():
        try:
            values[key] = config.parse_yaml(text)
            options_of({key: values[key]})
        except yaml.YAMLError:
            keys[key] = f"{key}: {text!r} cannot be read."
        except UserInputError as error:
            keys[key] = error.what
    if keys:
        raise RefusedError(" ".join(keys.values()), "Mend the settings of the way.", keys)
    return values


def report(home: str, job: str) -> dict[str, Any]:
    """What a done fusion's report says (fusion_words.Told)."""
    path = Queue(Path(home)).get_job(job).run / "adapter.report.json"
    try:
        found = FusionReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserInputError("The report of this fusion is gone or damaged.", "Combine them again.") from error
    return fusion_words.told(found).model_dump()


QUESTIONS: dict[str, Callable[..., Any]] = {
    "fusion_facts": facts,
    "fusion_advice": advice,
    "fusion_request": request,
    "fusion_report": report,
}
