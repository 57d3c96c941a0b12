"""From a batch file, or a folder of subjects, to its runs: all of them composed and checked, or every mistake told.

name: pets
defaults: {preset: quick, steps: 300}         # keys of the schema, nested or dotted; and preset, and subject
runs: [{name: rex, subject: pets/rex}, …]     # each run …
grid: {subjects: pets/*, adapters: [lora, dora], ranks: [4, 16], seeds: [0, 1], optim.learning_rate: [1e-4]}
                                              # … at each point of the grid
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from adapters.errors import StudioError, UserInputError
from studio import config, schema
from studio.batch.entries import Mistake, Point, entries_of
from studio.batch.subjects import Setting
from studio.paths import slug
from studio.refusals import RefusedError
from trainers import dreambooth, images
from trainers.config import TrainConfig
from trainers.sources import find_source


@dataclass(frozen=True)
class PlannedRun:
    """One run of a batch: what people call it, where it stands on the grid's axes, and its whole configuration."""

    label: str
    axes: dict[str, str]
    config: TrainConfig

    @property
    def digest(self) -> str:
        """Of the whole configuration: the same digest is the same run."""
        return hashlib.sha256(json.dumps(self.config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """A folder's name, which the configuration alone decides: it is found again when the batch has changed."""
        captions = self.config.data.captions
        return f"{slug(f'{captions.trigger} {captions.class_word} {self.config.adapter.method}')}-{self.digest[:8]}"


@dataclass(frozen=True)
class Plan:
    """A batch that may start."""

    source: Path
    name: str
    runs: tuple[PlannedRun, ...]


class MistakesError(UserInputError):
    """Everything that is wrong with a batch, a line each."""


def plan(target: Path, preset: str | None = None, assignments: Sequence[str] = ()) -> Plan:
    """The runs of a file or of a folder of subjects; `assignments` (--set) win over the file, `preset` over none in it.

    Raises MistakesError with a line for each mistake, and MissingError or FileFormatError for a file that is no YAML.
    """
    target = target.expanduser()
    found = entries_of(target)
    mistakes = list(found.mistakes)
    over = config.set_layer(assignments)
    runs: list[PlannedRun] = []
    for points in product(*found.axes):
        composed = _composed([*found.defaults, *(s for point in points for s in point.settings)], preset, over, points)
        if isinstance(composed, TrainConfig):
            runs.append(_named(points, composed))
        else:
            mistakes += composed
    mistakes += _same_twice(runs)
    mistakes += _outside(runs)
    if mistakes:
        raise _refusal(target, mistakes)
    return Plan(target.absolute(), found.name, tuple(_told_apart(runs)))


def _refusal(target: Path, mistakes: Iterable[Mistake]) -> MistakesError:
    lines = [mistake.text for mistake in sorted(dict.fromkeys(mistakes), key=lambda one: one.line)]
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return MistakesError(
        "\n".join([f"{target} has {count}; nothing was started.", *lines]), "How a batch is written: docs/batch.md."
    )


def _named(points: Sequence[Point], composed: TrainConfig) -> PlannedRun:
    captions = composed.data.captions
    words = [point.label for point in points if point.label] or [f"{captions.trigger} {captions.class_word}".strip()]
    return PlannedRun(" · ".join(words), {point.axis: point.value for point in points if point.value}, composed)


def _composed(
    settings: Sequence[Setting], preset: str | None, over: config.Layer, points: Sequence[Point]
) -> TrainConfig | list[Mistake]:
    chosen, settings = _preset_of(settings, preset)
    layers = [(setting, _layer(setting)) for setting in settings]
    base = str(next((setting.value for setting in reversed(settings) if setting.key == "base"), "embedded"))
    base = str(over.values.get("base", base))
    mistakes, good = list[Mistake](), list[config.Layer]()
    try:
        below = config.preset_layers(str(chosen.value), config.family_of(base))
    except UserInputError as error:  # and what else is wrong is told beside it
        mistakes.append(Mistake.of(error, chosen.source))
        below = config.preset_layers(config.DEFAULT_PRESET, config.family_of(base))
    try:
        fields = dict(schema.walk(config.method_in([*(layer for _, layer in layers), over])))
    except UserInputError as error:
        named = [s.source for s in settings if s.key in (schema.ADAPTER_KEY, f"{schema.ADAPTER_KEY}.method")]
        mistakes.append(Mistake.of(error, named[-1] if named else "--set"))
        if not named:
            return mistakes
        layers = [(s, layer) for s, layer in layers if s.key.partition(".")[0] != schema.ADAPTER_KEY]
        fields = dict(schema.walk(config.method_in(below)))
    for setting, layer in layers:
        try:
            config.check_key(_method_key(setting.key), fields, setting.source)
            good.append(layer)
        except UserInputError as error:
            mistakes.append(Mistake.of(error))
    whole = _whole(below, good, over, "" if mistakes else _place(points))
    return [*mistakes, *whole] if isinstance(whole, list) else mistakes or whole


def _whole(
    below: Sequence[config.Layer], good: Sequence[config.Layer], over: config.Layer, place: str
) -> TrainConfig | list[Mistake]:
    """`place`: of what no line is to blame for; "": such things are not told, as they follow from other mistakes."""
    try:
        return config.compose([*below, *good, over])
    except RefusedError as error:
        told = [refusal for refusal in error.refusals if refusal.source is not None or place]
        return [Mistake.of(refusal.sentence, None if refusal.source else place) for refusal in told]
    except StudioError as error:  # it names no line: without which one would it not be said?
        for layer in reversed(good):
            rest = [other for other in good if other is not layer]
            if _refusal_of([*below, *rest, over]) != str(error):
                others = _whole(below, rest, over, "")
                return [Mistake.of(error, layer.source), *(others if isinstance(others, list) else [])]
        return [Mistake.of(error, place)]


def _refusal_of(layers: Sequence[config.Layer]) -> str:
    try:
        config.compose(layers)
    except StudioError as error:
        return str(error)
    return ""


def _preset_of(settings: Sequence[Setting], preset: str | None) -> tuple[Setting, list[Setting]]:
    """The preset that the last setting of that name names, or the command line's; and the other settings."""
    named = [Setting("preset", preset or config.DEFAULT_PRESET, "--preset")]
    named += [setting for setting in settings if setting.key == "preset"]
    return named[-1], [setting for setting in settings if setting.key != "preset"]


def _layer(setting: Setting) -> config.Layer:
    layer = config.Layer(setting.source, {})
    config.put(layer.values, setting.key, setting.value)
    return layer


def _method_key(key: str) -> str:
    return f"{key}.method" if key == schema.ADAPTER_KEY else key


def _place(points: Sequence[Point]) -> str:
    """Where a run without a place of its own is made."""
    return next((point.source for point in points if point.source), "") or "the batch"


def _told_apart(runs: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """Runs of one label are numbered."""
    seen: Counter[str] = Counter()
    for run in runs:
        seen[run.label] += 1
        yield run if seen[run.label] == 1 else replace(run, label=f"{run.label} ({seen[run.label]})")


def _same_twice(runs: Sequence[PlannedRun]) -> Iterator[Mistake]:
    first: dict[str, PlannedRun] = {}
    for run in runs:
        if run.digest in first:
            yield Mistake(0, f"Two runs are the same: {first[run.digest].label} and {run.label}. Leave one out.")
        first.setdefault(run.digest, run)


def _outside(runs: Sequence[PlannedRun]) -> Iterator[Mistake]:
    """What the configurations cannot tell by themselves: pictures that cannot be used, bases that are not there."""
    checks = [
        *({(str(run.config.data.folder), run.config.data.checks): run for run in runs}.values()),
        *({f"base {run.config.base}": run for run in runs}.values()),
    ]
    for number, run in enumerate(checks):
        try:
            if number < len(checks) - len({run.config.base for run in runs}):
                images.find_pictures(run.config.data.folder, run.config.data.checks)
            elif Path(run.config.base).expanduser().exists() or run.config.base.count("/") != 1:
                find_source(run.config.base)  # a hub's is fetched by the first run
        except StudioError as error:
            yield Mistake.of(error, run.label)
    for run in runs:
        try:
            if run.config.prior.weight > 0:
                dreambooth.class_prompt(run.config)
        except StudioError as error:
            yield Mistake.of(error, run.label)
