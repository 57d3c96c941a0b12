"""What a run would take on this machine, before it is begun: from what ran here, else from what was measured elsewhere.

The figures of docs/measurements.md and docs/speed.md are for one machine each; a run that is done here replaces them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from studio import config
from studio.config import Layer
from studio.doctor import SDXL_GIB, Gpu
from trainers.config import TrainConfig

_CPU_EMBEDDED_SECONDS = 0.11
"""A picture of the embedded base's, forward and back, on one thread (docs/measurements.md: 0.22 s at batch 4, doubled
for machines that do other things, too)."""
_GPU_SECONDS = {"embedded": 0.02, "sdxl": 0.15}
"""A picture, batch 1, on a GPU: an H100 takes 0.053 s, smaller cards several times that."""
_START_SECONDS = {"embedded": 25.0, "sdxl": 60.0}
_MIB_A_RANK = {"embedded": 0.08, "sdxl": 2.9}
"""Size of a LoRA on attention, a rank, fp16, in MiB."""
_WIDER = {"attention": 1.0, "linear": 1.9, "all": 2.6}
_EMBEDDED_GIB = 1.5


class Card(BaseModel):
    """A preset as it would be here."""

    model_config = ConfigDict(frozen=True)
    name: str
    meaning: str
    minutes: float | None
    memory_gib: float
    size_mib: float
    fits: bool
    reason: str
    """Why it does not fit, or from where the estimate is."""
    measured: bool


def cards(base: str, measured: list[dict[str, Any]], gpus: list[Gpu]) -> Iterator[Card]:
    """Every preset on that base. `measured`: base, batch_size and seconds_per_step of runs that were done here."""
    family = config.family_of(base)
    for name in config.preset_names():
        subject = Layer(
            "", {"base": base, "data": {"folder": ".", "captions": {"trigger": "sks", "class_word": "dog"}}}
        )
        whole = config.compose([*config.preset_layers(name, family), subject])
        reason = _why_not(name, family, gpus)
        known = [run for run in measured if run["base"] == base]
        yield Card(
            name=name,
            meaning=str(config.preset(name)["meaning"]),
            minutes=None if reason else _seconds(whole, family, known, bool(gpus)) / 60,
            memory_gib=_EMBEDDED_GIB if family == "embedded" else SDXL_GIB.get(name, SDXL_GIB["balanced"]),
            size_mib=_size(whole, family),
            fits=not reason,
            reason=reason,
            measured=bool(known),
        )


def _why_not(name: str, family: str, gpus: list[Gpu]) -> str:
    if family == "embedded":
        return ""
    needed = SDXL_GIB.get(name, SDXL_GIB["balanced"])
    largest = max((gpu.total for gpu in gpus), default=0.0)
    if not gpus:
        return "needs an NVIDIA GPU, and none is seen here"
    return f"needs {needed:g} GiB of GPU memory; this one has {largest:.1f}" if largest < needed else ""


def _seconds(whole: TrainConfig, family: str, known: list[dict[str, Any]], gpu: bool) -> float:
    pictures = whole.batch_size * (2 if whole.prior.weight else 1)
    if known:
        a_picture = known[0]["seconds_per_step"] / known[0]["pictures"]
    else:
        a_picture = _GPU_SECONDS[family] if gpu else _CPU_EMBEDDED_SECONDS
    slower = 1.35 if whole.gradient_checkpointing else 1.0
    return _START_SECONDS[family] + whole.steps * whole.gradient_accumulation * pictures * a_picture * slower


def _size(whole: TrainConfig, family: str) -> float:
    rank = float(getattr(whole.adapter, "rank", 16) or 16)
    wider = _WIDER.get(whole.targets.unet, 0.5)
    encoders = 0.25 if whole.targets.text_encoders_train else 0.0
    return _MIB_A_RANK[family] * rank * (wider + encoders)


def sentences(whole: TrainConfig, count: int) -> Iterator[str]:
    """A run in plain words."""
    captions = whole.data.captions
    called = " ".join(filter(None, (captions.trigger, captions.class_word)))
    base = "the built-in small base" if whole.base == "embedded" else whole.base
    seen = whole.steps * whole.batch_size * whole.gradient_accumulation
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    yield f"It looks {seen} times at {pictures}, in {whole.steps} steps, and learns that they show “{called}”."
    yield f"It teaches {base} by the method {whole.adapter.method}; the base itself stays as it is."
    if whole.prior.weight:
        yield f"Besides, it looks at {whole.prior.pictures} pictures of any {captions.class_word}, not to forget them."
    if whole.sample.every:
        yield f"Every {whole.sample.every} steps it draws samples."
    if whole.save_every:
        yield f"It saves every {whole.save_every} steps, so that it can go on after a stop."
