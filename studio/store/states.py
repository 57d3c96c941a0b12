"""What a job can be, what may follow, and what each command does to it: the one place that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

State = Literal["queued", "preparing", "running", "paused", "done", "failed", "cancelled", "interrupted"]
Ask = Literal["cancel", "pause", "resume", "save", "sample"]
"""What a person may ask of a job."""

STATES: tuple[State, ...] = get_args(State)
ASKS: tuple[Ask, ...] = get_args(Ask)

TRANSITIONS: Mapping[State, frozenset[State]] = {
    "queued": frozenset({"preparing", "paused", "cancelled"}),
    "preparing": frozenset({"running", "paused", "failed", "cancelled", "interrupted"}),
    "running": frozenset({"done", "paused", "failed", "cancelled", "interrupted"}),
    "paused": frozenset({"queued", "cancelled"}),
    "interrupted": frozenset({"queued", "paused", "failed", "cancelled"}),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
    "done": frozenset(),
}

ACTIVE: tuple[State, ...] = ("preparing", "running")
"""A worker is at it and holds the lock of its folder; where nobody holds it, the worker has died."""
WAITING: tuple[State, ...] = ("queued", "interrupted")
"""A worker will take it up."""
GIVEN_UP: tuple[State, ...] = ("failed", "cancelled")
"""A person may ask for it to be tried again."""
OVER: tuple[State, ...] = ("done", "failed", "cancelled")
"""Nothing happens to it unless a person asks."""

AT_ONCE: Mapping[Ask, Mapping[State, State]] = {
    "cancel": {"queued": "cancelled", "interrupted": "cancelled", "paused": "cancelled"},
    "pause": {"queued": "paused", "interrupted": "paused"},
    "resume": {"paused": "queued", "interrupted": "queued"},
    "save": {},
    "sample": {},
}
"""Where no worker is at it, a command is a transition; where one is, the worker is told (`TOLD`)."""
TOLD: frozenset[Ask] = frozenset({"cancel", "pause", "save", "sample"})


def sources(target: State) -> tuple[State, ...]:
    """The states from which a job may come to be `target`."""
    return tuple(state for state, targets in TRANSITIONS.items() if target in targets)
