"""What a person sees of a run: a bar with time left, loss, speed and memory; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from trainers import events
from trainers.events import Event

_LINE_EVERY_SECONDS = 10.0
_SMOOTHING = 0.1


def duration(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """Bytes in the unit that suits them: 1.2 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def speed(seconds_per_step: float) -> str:
    if seconds_per_step <= 0:
        return "–"
    if seconds_per_step >= 0.5:
        return f"{seconds_per_step:.2f} s/step"
    return f"{1 / seconds_per_step:.1f} steps/s"


class Average:
    """Exponential moving averages of loss and speed, so that a number can be read while it runs."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.seconds = 0.0
        self._seen = False

    def update(self, event: events.Stepped) -> None:
        keep = 1 - _SMOOTHING if self._seen else 0.0
        self.loss = keep * self.loss + (1 - keep) * event.loss
        self.seconds = keep * self.seconds + (1 - keep) * event.seconds_per_step
        self._seen = True

    def line(self, event: events.Stepped) -> str:
        left = duration(self.seconds * (event.steps - event.step))
        return f"loss {self.loss:.4f} · {speed(self.seconds)} · {size(event.memory_bytes)} · {left} left"


class Display(Protocol):
    """Shows events."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, event: Event) -> None: ...


def sentence(event: Event) -> str | None:
    """Events that are a line of their own on any display."""
    match event:
        case events.Note():
            return event.text
        case events.Started():
            shared = f", each shared by {event.processes} processes" if event.processes > 1 else ""
            return (
                f"Training {event.trainable_parameters:,} numbers on {event.pictures} pictures, "
                f"{event.steps - event.step} steps on {event.device} in {event.precision}{shared}."
            )
        case events.Validated():
            return f"Step {event.step}: validation loss {event.loss:.4f} (without the adapter {event.base_loss:.4f})."
        case events.Sampled():
            return f"Samples: {event.path}"
        case events.Saved():
            return f"Adapter: {event.path}" if event.final else f"Checkpoint: {event.path}"
        case events.Finished():
            return {"done": "Done", "cancelled": "Cancelled", "paused": "Stopped"}[event.reason] + (
                f" after {event.step} steps, {duration(event.seconds)}."
            )
        case _:
            return None


class LineDisplay:
    """A line every ten seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._average = Average()
        self._last = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, event: Event) -> None:
        match event:
            case events.Stepped():
                self._average.update(event)
                self._line(f"step {event.step}/{event.steps} · {self._average.line(event)}", event.step == event.steps)
            case events.Progress():
                self._line(f"{event.stage}: {event.done}/{event.total}", event.done == event.total)
            case _:
                text = sentence(event)
                warning = isinstance(event, events.Note) and event.level == "warning"
                if text is not None:
                    self._print(f"Warning: {text}" if warning else text)

    def _line(self, text: str, always: bool) -> None:
        if always or time.monotonic() - self._last >= _LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class BarDisplay:
    """A live bar for the steps and one for each stage before and after them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._average = Average()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
            expand=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        match event:
            case events.Stepped():
                self._average.update(event)
                self._advance("training", event.step, event.steps, self._average.line(event))
            case events.Progress():
                self._advance(event.stage, event.done, event.total)
            case _:
                text = sentence(event)
                if text is not None:
                    warning = isinstance(event, events.Note) and event.level == "warning"
                    style = "yellow" if warning else ("bold" if isinstance(event, events.Saved) and event.final else "")
                    self._progress.console.print(Text(text, style=style), soft_wrap=True)

    def _advance(self, stage: str, done: int, total: int, figures: str = "") -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, figures=figures)
        self._progress.update(self._tasks[stage], completed=done, total=total, figures=figures)
        # A stage that comes again (samples) starts a new bar; a finished one only takes room.
        if done >= total:
            self._progress.remove_task(self._tasks.pop(stage))


def display_for(console: Console) -> Display:
    """A bar on a terminal, lines elsewhere."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


def show_all(stream: Iterable[Event], console: Console) -> list[Event]:
    """Show every event as it comes; returns those that are not steps."""
    kept: list[Event] = []
    with display_for(console) as display:
        for event in stream:
            display.show(event)
            if not isinstance(event, (events.Stepped, events.Progress)):
                kept.append(event)
    return kept
