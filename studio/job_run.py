"""One job, from claim to end: done by whoever knows its kind, and failed in a sentence at worst."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rich.console import Console

from studio.claims import Claim, Lost
from studio.failures import Failure, explain
from studio.library import Library, clean
from studio.runs import RunFolder
from studio.stopping import Stop
from studio.store import Ask, State
from trainers.bases import BaseKeeper
from trainers.events import Command


class JobRun(ABC):
    """A claimed job being done in this process. A kind of jobs is a subclass that says how (`_do`)."""

    def __init__(self, claim: Claim, device: str, bases: BaseKeeper, stop: Stop, console: Console) -> None:
        self.claim, self.device, self.bases, self.stop, self.console = claim, device, bases, stop, console
        self.folder = RunFolder(claim.job.run)

    def run(self) -> bool:
        """Does it to its end, whatever that is, and says so in the store; whether it went without a failure.

        Raises StudioError where the store itself cannot be written: the job is then found as any dead worker's.
        """
        job = self.claim.job
        self._say(f"Job {job.id}: {job.title}, attempt {job.attempts}.")
        try:
            state, failure = self._outcome()
            if state == "done":
                self._enter_into_library()
            self.claim.end(state, failure)
        except Lost:
            self._say(f"Job {job.id} was taken from this worker.")
            return False
        except KeyboardInterrupt:
            self.claim.end("interrupted")
            raise
        finally:
            self.claim.lock.release()
        return failure is None

    @abstractmethod
    def _do(self) -> State:
        """The work; returns the state that the job ends in."""

    def _explained(self, error: Exception) -> Failure:
        """The error, with what would help a job of this kind."""
        return explain(error)

    def _outcome(self) -> tuple[State, Failure | None]:
        try:
            return self._do(), None
        except Lost:
            raise
        except Exception as error:
            failure = self._explained(error)
            self._say(f"It failed. {failure.what}")
            return "failed", failure

    def _enter_into_library(self) -> None:
        """Before the job's end, while nobody else may write into its folder; not worth failing it for."""
        job, queue = self.claim.job, self.claim.queue
        try:
            if self.folder.adapter.exists():
                library = Library(queue.home, queue.store)
                library.add(self.folder.adapter, name=clean(job.title) or None, job=job.id)
        except Exception as error:
            self._say(f"Warning: it is not in the library. {explain(error).what}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _stopping(self, asked: list[Ask]) -> Command | None:
        if "cancel" in asked:
            return "cancel"
        return "pause" if "pause" in asked or self.stop.asked else None

    def _stopped(self) -> State:
        return "paused" if "pause" in self.claim.asked() else "interrupted"
