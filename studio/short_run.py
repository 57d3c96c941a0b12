"""Jobs of minutes, of which no checkpoint is kept: they tell how far they are, and can be stopped whenever they do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from studio import event_log
from studio.claims import Lost
from studio.failures import Failure, explain
from studio.job_run import JobRun
from studio.library import Library
from studio.paths import LIBRARY_PREFIX
from studio.progress import sentence
from studio.store import State, Summary
from trainers.events import Event, Note, Progress
from trainers.sdxl import Base


class _Asked(Exception):
    """It was asked to stop; the state that it ends in."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state: State = state


class ShortRun(JobRun):
    """A claimed job that tells its progress and obeys between two steps of its work."""

    @abstractmethod
    def _work(self) -> None:
        """All of it; calls `tell` often."""

    def _do(self) -> State:
        self.folder.remove_leftovers()
        self.folder.events.unlink(missing_ok=True)
        try:
            self.tell(Progress(stage="base", done=0, total=0))
            self._work()
        except _Asked as asked:
            return asked.state
        return "done"

    def tell(self, event: Event) -> None:
        """Writes it down for whoever follows the job; then stops the work where that was asked for."""
        event_log.append(self.folder.events, event)
        if isinstance(event, Progress):
            summary = Summary(stage=event.stage, stage_done=event.done, stage_total=event.total)
            self.claim.report(summary)
        elif text := sentence(event):
            self._say(f"Warning: {text}" if isinstance(event, Note) and event.level == "warning" else text)
        command = self._stopping(self.claim.asked())
        if command is not None:
            raise _Asked("cancelled" if command == "cancel" else self._stopped())

    def attempt(self, work: Callable[[], None], without: str) -> None:
        """Does what the job is done without, too: a failure is a warning, which begins with what is then missing."""
        try:
            work()
        except (_Asked, Lost):
            raise
        except Exception as error:
            self.tell(Note(level="warning", text=f"{without}. {explain(error).what}"))

    def base(self, name: str) -> Base:
        """The base, which the next job finds as it is now."""
        base = self.bases.for_drawing(name, torch.device(self.device))
        self.claim.begin()
        return base

    def adapter(self, named: str) -> Path:
        """The file of lib:ID, in this queue's library, or of a path."""
        if not named.startswith(LIBRARY_PREFIX):
            return Path(named)
        return Library(self.claim.queue.home, self.claim.queue.store).path_of(named)

    def _explained(self, error: Exception) -> Failure:
        failure = explain(error)
        if failure.remedy is None:
            return failure
        return replace(failure, fix="Ask for smaller or fewer pictures, or wait until nothing else runs.", remedy=None)
