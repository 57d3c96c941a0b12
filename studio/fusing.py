"""`studio fuse`: several adapter files to one, with a report that a person understands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.atomic import atomic_path
from adapters.digest import file_sha256
from adapters.errors import UnknownNameError, UserInputError
from adapters.extras import summed
from adapters.files import AdapterCard, FusedConcept, save_adapter
from adapters.formats.open import AnyFile, attach_any, open_adapter
from adapters.fusion.fuse import Changes, Concept, as_adapter, changes_of, fused_deltas
from adapters.fusion.report import FusionReport, report_on
from adapters.fusion.way import FusionOptions, LayerGrams, find_way
from studio import __version__
from studio.config import set_layer
from studio.drawing import Tell, scheduled, warn
from studio.heat_map import heat_map
from studio.refusals import refusal_of
from studio.sampling import adapter_path, common_base
from trainers.activations import gather
from trainers.bases import pick_device, pick_dtype
from trainers.events import Progress
from trainers.result import timestamp
from trainers.sdxl import Base, load_base

_OWN = ("a photo of a {}", "a {}", "a {} on a red background", "a {} next to a house")
_NEUTRAL = ("a photo of a {}", "a house", "a tree on a green background", "a photo of a car")


@dataclass(frozen=True)
class Request:
    """What to fuse, and how."""

    adapters: Sequence[Path]
    how: str
    out: Path
    weights: Sequence[float] = ()
    options: FusionOptions = field(default_factory=FusionOptions)
    prompts: bool = True
    """Look at activations on the subjects' prompts: the report needs them, and least-squares does."""
    base: str | None = None


@dataclass(frozen=True)
class Result:
    """The files that a fusion left."""

    adapter: Path
    report: FusionReport
    files: Sequence[Path]


def parse_weights(text: str | None) -> list[float]:
    """1,1,0.8 → [1.0, 1.0, 0.8]; nothing for None."""
    if text is None:
        return []
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserInputError(f"{text!r} is no list of weights.", "Write it like --weights 1,1,0.8.") from error
    if not all(math.isfinite(weight) for weight in found):
        raise UserInputError(f"{text!r} holds a weight that is no number.", "Write it like --weights 1,1,0.8.")
    return found


def parse_options(assignments: Sequence[str]) -> FusionOptions:
    """--set key=value of the ways' knobs."""
    return options_of(set_layer(assignments).values)


def options_of(values: Mapping[str, Any]) -> FusionOptions:
    """The ways' knobs. refusals.RefusedError with those that are wrong, UnknownNameError for one that no way has."""
    for key in values:
        if key not in FusionOptions.model_fields:
            raise UnknownNameError("knob of fusion called", key, list(FusionOptions.model_fields))
    try:
        return FusionOptions.model_validate(values)
    except ValidationError as error:
        raise refusal_of(error, FusionOptions.model_fields, {}) from error


def load(name: str) -> Base:
    """The base for a fusion alone: on the device with its text encoders, which it asks again and again."""
    device = pick_device(None)
    encoders = ("text_encoder", "text_encoder_2")
    return load_base(name, device=device, dtype=pick_dtype("auto", device), resident=encoders)


def fuse(request: Request, tell: Tell, lend: Callable[[str], Base] = load) -> Result:
    """Fuses, judges, and writes `out` with .report.json, .report.txt and .report.png beside it.

    Args:
        tell: hears warnings and progress; what it raises stops the fusion, with nothing written.
        lend: the base of that name, which is left as it was.
    """
    way = find_way(request.how)
    paths = [adapter_path(given) for given in request.adapters]
    files = [open_adapter(path) for path in paths]
    weights = _weights(request.weights, len(files))
    base = lend(request.base or common_base(files))
    changes = changes_of(_concepts(base, files, weights, tell), request.options)
    samples = request.options.samples if way.samples_inputs else 0
    words = summed([(one.adapters.extras, 1.0) for one in changes.concepts]).words
    with scheduled(base, files), base.speaking(words):
        grams = _activations(base, changes, files, samples, tell) if request.prompts else None
    tell(Progress(stage="fusion", done=0, total=0))
    deltas = fused_deltas(changes, way, request.options, grams)
    report = report_on(request.how, changes, deltas, grams)
    card = _card(request.how, paths, files, weights)
    save_adapter(request.out, as_adapter(base.components, changes, deltas), card)
    return Result(request.out, report, [request.out, *_write(request.out, report)])


def report_lines(report: FusionReport) -> list[str]:
    """The report as text."""
    lines = [report.verdict, ""]
    for concept in report.concepts:
        told = f"{concept.name}: its own pictures change by {_percent(concept.lost)}"
        told += f"; on neutral prompts it acts {_percent(concept.drift)} as strongly as on its own"
        lines.append(told + (f"; {concept.error:.1%} of it has no factor form" if concept.error > 1e-4 else ""))
    for pair in report.pairs:
        lines.append(
            f"{pair.first} and {pair.second}: {pair.shared_columns} shared columns; weights overlap by "
            f"{pair.overlap:.3f}, what they look at by {pair.angle:.3f}; crosstalk {_percent(pair.crosstalk)} "
            f"on the first's prompts, {_percent(pair.crosstalk_back)} on the second's"
        )
    if report.drift is not None:
        lines.append(f"Neutral prompts: {report.drift:.2f} × the change of the strongest single adapter.")
    return lines


def _percent(value: float | None) -> str:
    return "an unmeasured part" if value is None else f"{value:.0%}"


def _weights(given: Sequence[float], count: int) -> list[float]:
    if not given:
        return [1.0] * count
    if len(given) != count:
        raise UserInputError(
            f"There are {count} adapters and {len(given)} weights.", "Give --weights one number an adapter: 1,1,0.8."
        )
    return list(given)


def _concepts(base: Base, files: Sequence[AnyFile], weights: Sequence[float], tell: Tell) -> list[Concept]:
    found: list[Concept] = []
    for file, weight in zip(files, weights, strict=True):
        name = file.card.trigger or f"adapter {len(found) + 1}"
        taken = {concept.name for concept in found}
        adapters = attach_any(base.components, file, base.hash)
        adapters.detach()
        if adapters.warning:
            warn(tell, f"{name}: {adapters.warning}")
        adapters.to(base.device)
        found.append(Concept(f"{name} ({len(found) + 1})" if name in taken else name, adapters, weight))
    return found


def prompts_of(cards: Sequence[AdapterCard]) -> list[list[str]]:
    """What activations are gathered on: each subject's own prompts, and neutral ones last."""
    subjects = [f"{card.trigger} {card.class_word}".strip() or "subject" for card in cards]
    classes = [card.class_word or "thing" for card in cards]
    neutral = [text.format(classes[number % len(classes)]) for number, text in enumerate(_NEUTRAL)]
    return [*([text.format(subject) for text in _OWN] for subject in subjects), neutral]


def _activations(
    base: Base, changes: Changes, files: Sequence[AnyFile], samples: int, tell: Tell
) -> dict[str, LayerGrams]:
    grams: dict[str, LayerGrams] = {}
    for found in gather(base, changes, prompts_of([file.card for file in files]), samples=samples):
        if isinstance(found, Progress):
            tell(found)
        else:
            grams = found
    return grams


def _card(how: str, paths: Sequence[Path], files: Sequence[AnyFile], weights: Sequence[float]) -> AdapterCard:
    first = files[0].card
    concepts = tuple(
        FusedConcept(
            trigger=file.card.trigger,
            class_word=file.card.class_word,
            concept=file.card.concept,
            sha256=file_sha256(path),
            weight=weight,
        )
        for path, file, weight in zip(paths, files, weights, strict=True)
    )
    return first.model_copy(
        update={
            "trigger": ", ".join(dict.fromkeys(one.trigger for one in concepts if one.trigger)),
            "class_word": ", ".join(dict.fromkeys(one.class_word for one in concepts if one.class_word)),
            "steps": 0,
            "config_hash": "",
            "created": timestamp(),
            "studio_version": __version__,
            "thumbnail": "",
            "concept": "",
            "slots": 0,
            "fused_by": how,
            "concepts": concepts,
        }
    )


def _write(out: Path, report: FusionReport) -> list[Path]:
    stem = out.with_suffix("")
    texts = {".report.json": report.model_dump_json(indent=1), ".report.txt": "\n".join(report_lines(report)) + "\n"}
    written: list[Path] = []
    for ending, text in texts.items():
        path = Path(f"{stem}{ending}")
        with atomic_path(path) as part:
            part.write_text(text, encoding="utf-8")
        written.append(path)
    picture = Path(f"{stem}.report.png")
    with atomic_path(picture) as part:
        heat_map(report).save(part, format="PNG")
    return [*written, picture]
