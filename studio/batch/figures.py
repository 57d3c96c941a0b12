"""What is known of each run of a batch: its state, its figures, its curve and its last samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from studio import event_log
from studio.batch.record import BatchRecord, RunRecord, RunStatus
from studio.batch.storage import Storage
from trainers import events
from trainers.events import Event, parse_event
from trainers.result import ADAPTER_NAME

_LAST_PART = 0.1
"""The loss of a run is the mean over this part of its steps, the last: single steps are mostly noise."""
NOT_STARTED = RunStatus(state="queued", attempts=0)


@dataclass(frozen=True)
class Figures:
    """One run in numbers; None is what it has not come to."""

    run: RunRecord
    status: RunStatus
    command: str
    """Does the run again."""
    place: str
    """Its folder."""
    curve: tuple[tuple[int, float], ...]
    """Step and loss."""
    steps: int
    loss: float | None
    validation_loss: float | None
    base_loss: float | None
    seconds_per_step: float | None
    memory_bytes: int | None
    parameters: int | None
    seconds: float | None
    sample: str | None
    """The name in the storage of the last grid of samples."""

    @property
    def adapter(self) -> str | None:
        return f"{self.place}/{ADAPTER_NAME}" if self.status.state == "done" else None

    @property
    def subject(self) -> str:
        return str(self.run.config["data"]["folder"])

    @property
    def words(self) -> str:
        captions = self.run.config["data"]["captions"]
        return f"{captions['trigger']} {captions['class_word']}".strip()

    @property
    def noise(self) -> tuple[Any, ...]:
        """Runs that agree in this have drawn their samples from the same words and noise."""
        whole = self.run.config
        sample: dict[str, Any] = dict(whole["sample"])
        return (self.subject, whole["base"], whole["seed"], *(str(sample[key]) for key in sorted(sample)))


def figures_of(storage: Storage, record: BatchRecord, statuses: Mapping[str, RunStatus]) -> list[Figures]:
    """All runs of a batch, in its order; `statuses` by the digest of a run."""
    return [_figures(storage, run, statuses.get(run.digest, NOT_STARTED)) for run in record.runs]


def _figures(storage: Storage, run: RunRecord, status: RunStatus) -> Figures:
    seen = event_log.course(_events(storage, run))
    steps = [event for event in seen if isinstance(event, events.Stepped)]
    checks = [event for event in seen if isinstance(event, events.Validated)]
    starts = [event for event in seen if isinstance(event, events.Started)]
    ends = [event for event in seen if isinstance(event, events.Finished)]
    samples = [event for event in seen if isinstance(event, events.Sampled)]
    config = storage.place(run.config_file) if storage.local else run.config_file
    last = checks[-1] if checks and steps and checks[-1].step > 0 else None
    return Figures(
        run=run,
        status=status,
        command=f"studio train --config {_quoted(config)}",
        place=storage.place(run.folder),
        curve=tuple((event.step, event.loss) for event in steps),
        steps=steps[-1].step if steps else 0,
        loss=_last_loss(steps),
        validation_loss=last.loss if last else None,
        base_loss=last.base_loss if last else None,
        seconds_per_step=median(event.seconds_per_step for event in steps) if steps else None,
        memory_bytes=max((event.memory_bytes for event in steps), default=None),
        parameters=starts[-1].trainable_parameters if starts else None,
        seconds=ends[-1].seconds if ends else None,
        sample=f"{run.folder}/samples/{samples[-1].path.name}" if samples else None,
    )


def _events(storage: Storage, run: RunRecord) -> Iterator[Event]:
    content = storage.read(f"{run.folder}/events.jsonl") or b""
    whole = content[: content.rfind(b"\n") + 1]
    return (parse_event(line) for line in whole.decode("utf-8").split("\n")[:-1])


def _last_loss(steps: Sequence[events.Stepped]) -> float | None:
    if not steps:
        return None
    begin = steps[-1].step * (1 - _LAST_PART)
    return fmean(event.loss for event in steps if event.step > begin)


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
