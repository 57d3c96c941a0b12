"""The adapters: for each subject (and the style), seed and kind, by the presets that `studio train` has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fusion.subjects import Member
from studio import config as studio_config
from trainers.config import TrainConfig
from trainers.events import Finished
from trainers.loop import train


@dataclass(frozen=True)
class Kind:
    """A way to learn one subject: knobs laid over the preset."""

    preset: str
    steps: int
    learning_rate: float
    adapter: dict[str, Any]
    slotted: bool = False

    def spec(self, slot: int) -> dict[str, Any]:
        return {**self.adapter, "slot": slot} if self.slotted else self.adapter


KINDS = {
    "lora": Kind("quick", 200, 2e-3, {"method": "lora", "rank": 8}),
    "spectral-a": Kind("quick", 200, 1e-3, {"method": "spectral-a", "rank": 8}, slotted=True),
    "spectral-a confined": Kind(
        "quick", 200, 3e-3, {"method": "spectral-a", "rank": 8, "confined": True}, slotted=True
    ),
    "spectral-r": Kind("quick", 200, 2e-3, {"method": "spectral-r", "rank": 8}, slotted=True),
    "oft": Kind("quick", 200, 1e-3, {"method": "oft"}),
}


@dataclass(frozen=True)
class Training:
    """One adapter that is wanted."""

    name: str
    kind: str
    seed: int
    trigger: str
    class_word: str
    slot: int

    def folder(self, work: Path) -> Path:
        return work / "adapters" / self.kind / f"{self.name} {self.seed}"


def training_of(member: Member, kind: str, seed: int) -> Training:
    return Training(member.name, kind, seed, member.trigger, "style" if member.style else member.thing, member.slot)


def configuration(training: Training, pictures: Path, steps: int | None = None) -> TrainConfig:
    """A preset of the embedded base with the kind's knobs; nothing is drawn or validated on the way."""
    kind = KINDS[training.kind]
    captions = {"trigger": training.trigger, "class_word": training.class_word}
    values = {
        "base": "embedded",
        "data": {"folder": str(pictures / training.name), "captions": captions},
        "adapter": kind.spec(training.slot),
        "optim": {"learning_rate": kind.learning_rate},
        "sample": {"count": 0},
        "steps": steps or kind.steps,
        "seed": training.seed,
        "save_every": 0,
        "validation_levels": 0,
    }
    preset = studio_config.preset_layers(kind.preset, "embedded")
    return studio_config.compose([*preset, studio_config.Layer("the benchmark", values)])


def run(training: Training, work: Path, steps: int | None = None) -> float:
    """Trains, and returns the seconds it took."""
    finished = None
    for event in train(configuration(training, work / "pictures", steps), training.folder(work)):
        if isinstance(event, Finished):
            finished = event
    assert finished is not None
    return finished.seconds
