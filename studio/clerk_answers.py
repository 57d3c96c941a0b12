"""What the clerk knows: the settings' form, a plan's configuration, what this machine can do. Imports torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import yaml

from adapters.errors import UserInputError
from adapters.registry import REGISTRY
from studio import clerk_fusion, clerk_library, config, doctor, estimate, form, submitting
from studio.clerk import RefusedError
from studio.config import Layer
from studio.queue import Queue
from trainers.config import TrainConfig

YOURS = "your settings"
_NOWHERE = "the pictures' folder"


def _layers(preset: str, base: str, settings: dict[str, str]) -> list[Layer]:
    """A preset under a person's own settings, each a text that is read as YAML."""
    for key in settings:
        if key in form.ASKED_ELSEWHERE | form.PLACES:
            raise RefusedError(f"{key} is not set here.", "Use studio train for it.", {key: f"{key} is not set here."})
    yours = config.set_layer([f"{key}={text}" for key, text in settings.items()])
    return [
        *config.preset_layers(preset, config.family_of(base)),
        Layer(YOURS, yours.values),
        Layer("the form", {"base": base}),
    ]


def _subject(folder: str, trigger: str, class_word: str) -> Layer:
    captions = {"trigger": trigger, "class_word": class_word}
    return Layer("the form", {"data": {"folder": folder, "captions": captions}})


def _composed(layers: list[Layer]) -> TrainConfig:
    """The configuration; what is wrong with it is refused key by key, so that a form can say it beside the field."""
    try:
        return config.compose(layers)
    except UserInputError as error:
        known = [key for layer in layers for key, _ in config.leaves(layer.values)]
        keys: dict[str, str] = {}
        for sentence in error.what.splitlines():
            key = max((key for key in known if sentence.startswith(key)), key=len, default="")
            plain = sentence.replace(f" (from {YOURS})", "").replace(" (from the form)", "")
            keys[key] = f"{keys[key]} {plain}" if key in keys else plain
        raise RefusedError(error.what, error.fix, keys) from error


def _standing(preset: str, base: str, method: str) -> dict[str, Any]:
    """Every key's value where nothing but the preset and the method is chosen."""
    layers = [*_layers(preset, base, {"adapter.method": method}), _subject(_NOWHERE, "sks", "")]
    return dict(config.leaves(_composed(layers).model_dump(mode="json")))


def settings_form(preset: str, base: str, method: str) -> list[dict[str, Any]]:
    """The knobs of a run with that method, in the schema's order, with what the preset gives them."""
    return [knob.model_dump() for knob in form.knobs(method, _standing(preset, base, method))]


def methods() -> list[dict[str, str]]:
    return [{"name": name, "title": REGISTRY[name].title, "paper": REGISTRY[name].paper} for name in sorted(REGISTRY)]


def plan(
    preset: str, base: str, settings: dict[str, str], folder: str, trigger: str, class_word: str, count: int
) -> dict[str, Any]:
    """A run as it would be: its whole configuration as YAML, as a command, and in plain sentences."""
    whole = _composed([*_layers(preset, base, settings), _subject(folder, trigger, class_word)])
    return {
        "yaml": yaml.safe_dump(whole.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "command": _command(preset, base, settings, folder, trigger, class_word),
        "sentences": list(estimate.sentences(whole, count)),
    }


def _command(preset: str, base: str, settings: dict[str, str], folder: str, trigger: str, class_word: str) -> str:
    words = ["studio", "train", folder, "--trigger", trigger]
    words += ["--class", class_word] if class_word else []
    words += ["--base", base] if base != "embedded" else []
    words += ["--preset", preset]
    for key, text in settings.items():
        words += ["--set", f"{key}={text}"]
    return shlex.join(words)


def settings_of_yaml(text: str, preset: str, base: str) -> dict[str, str]:
    """What a person's YAML changes of the preset, as settings; keys that the form itself asks for are left out."""
    try:
        values = config.parse_yaml(text)
    except yaml.YAMLError as error:
        raise RefusedError(f"This is not YAML: {' '.join(str(error).split())}", "Mend it, or undo.") from error
    if not isinstance(values, dict):
        raise RefusedError("There are no keys in it.", 'It should hold lines such as "steps: 500".')
    given = dict(config.leaves(cast("dict[str, Any]", values)))
    method = str(given.get("adapter.method", given.get("adapter", config.DEFAULT_METHOD)))
    standing = _standing(preset, base, method)
    told = {key: value for key, value in given.items() if key not in form.ASKED_ELSEWHERE | form.PLACES}
    changed = {key: value for key, value in told.items() if key not in standing or standing[key] != value}
    if method != _standing_method(preset, base):
        changed["adapter.method"] = method
    return {key: form.as_text(value) for key, value in changed.items()}


def _standing_method(preset: str, base: str) -> str:
    return config.method_in(config.preset_layers(preset, config.family_of(base)))


def submission(
    preset: str, base: str, settings: dict[str, str], folder: str, trigger: str, class_word: str, key: str
) -> dict[str, Any]:
    whole = _composed([*_layers(preset, base, settings), _subject(folder, trigger, class_word)])
    return submitting.checked(whole, key=key).model_dump(mode="json")


def again(job: str, home: str, preset: str | None = None) -> dict[str, Any]:
    """A new job with another one's settings, under a preset's where one is named."""
    return submitting.again(Queue(Path(home)).get_job(job), preset=preset).model_dump(mode="json")


def presets(base: str, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each preset would take here."""
    return [card.model_dump() for card in estimate.cards(base, measured, doctor.gpus())]


def machine() -> list[dict[str, str]]:
    """The doctor's findings."""
    return [{"level": finding.level, "text": finding.text} for finding in doctor.examine()]


def trigger_pieces(word: str, base: str) -> list[str]:
    """The pieces that the base's tokenizer sees a word as. A base that is not here yet has CLIP's, as all SDXL have."""
    return form.pieces(word, base)


QUESTIONS: dict[str, Callable[..., Any]] = {
    "form": settings_form,
    "methods": methods,
    "plan": plan,
    "settings_of_yaml": settings_of_yaml,
    "submission": submission,
    "again": again,
    "presets": presets,
    "machine": machine,
    "trigger_pieces": trigger_pieces,
    **clerk_fusion.QUESTIONS,
    **clerk_library.QUESTIONS,
}
