"""events.jsonl: one event a line, written by whoever trains, read from any place on by whoever looks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainers.events import Event, Started, Stepped, Validated, parse_event


@dataclass(frozen=True)
class Chunk:
    """Some events, and the offset in bytes from which to read on."""

    events: list[Event]
    offset: int


def read(path: Path, offset: int = 0) -> Chunk:
    """The whole lines from `offset` on; from the start where no line ends there (another run has begun in it)."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                file.seek(offset := 0)
            content = file.read()
    except FileNotFoundError:
        return Chunk([], 0)
    whole = content[: content.rfind(b"\n") + 1]
    return Chunk([parse_event(line) for line in whole.decode("utf-8").split("\n")[:-1]], offset + len(whole))


def append(path: Path, event: Event) -> None:
    """One event at the file's end; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(event.model_dump_json() + "\n")


def record(path: Path, events: Iterable[Event]) -> Iterator[Event]:
    """Passes events on, each appended to the file first; a last line that was cut off is taken away before."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        for event in events:
            file.write(event.model_dump_json() + "\n")
            yield event


def course(events: Iterable[Event]) -> list[Event]:
    """The events without steps that were done again: a run that goes on from step k forgets what it did after k."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Started):
            kept = [e for e in kept if not (isinstance(e, Stepped | Validated) and e.step > event.step)]
        kept.append(event)
    return kept
