"""What a training run tells the world: one union that the terminal, the web page and events.jsonl only read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Note(_Event):
    """Something worth knowing, in a sentence; `level` is "warning" where the user may want to act."""

    kind: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    text: str


class Progress(_Event):
    """A stage before or after the steps (encoding pictures, class pictures, samples): `done` of `total`."""

    kind: Literal["progress"] = "progress"
    stage: str
    done: int
    total: int


class Started(_Event):
    """The first step is about to run."""

    kind: Literal["started"] = "started"
    step: int
    steps: int
    trainable_parameters: int
    pictures: int
    base: str
    device: str
    precision: str
    processes: int = 1


class Stepped(_Event):
    """Optimizer steps done so far; the loss is the mean since the event before; seconds are for one step."""

    kind: Literal["stepped"] = "stepped"
    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds_per_step: float
    memory_bytes: int


class Validated(_Event):
    """Loss on noise that training never sees; `loss` is the adapter's, `base_loss` the bare base's."""

    kind: Literal["validated"] = "validated"
    step: int
    loss: float
    base_loss: float


class Sampled(_Event):
    kind: Literal["sampled"] = "sampled"
    step: int
    path: Path


class Saved(_Event):
    """A checkpoint (to resume from) or, with `final`, the adapter file itself."""

    kind: Literal["saved"] = "saved"
    step: int
    path: Path
    final: bool = False


class Finished(_Event):
    """The last event of a run: all steps done (`reason` "done"), or stopped early by a command."""

    kind: Literal["finished"] = "finished"
    reason: Literal["done", "cancelled", "paused"]
    step: int
    seconds: float
    adapter: Path | None


Event = Annotated[
    Note | Progress | Started | Stepped | Validated | Sampled | Saved | Finished,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)

Command = Literal["cancel", "pause", "save", "sample"]


def parse_event(line: str) -> Event:
    """One line of events.jsonl back into its event."""
    return _EVENT.validate_json(line)
