"""One job, from claim to end: trains it through the events of trainers.loop, and fails it in a sentence at worst."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

from rich.console import Console

from studio import __version__, config, runs
from studio.claims import Claim, Lost
from studio.failures import Failure, explain
from studio.library import Library
from studio.progress import Average, display_for
from studio.runs import RunFolder
from studio.slots import claimed
from studio.stopping import Stop
from studio.store import Ask, State, Summary
from studio.tracking import tracked
from trainers import checkpoint, events
from trainers.bases import Bases
from trainers.config import TrainConfig
from trainers.events import Command, Event
from trainers.loop import train

_REPORT_SECONDS = 1.0


class Tracker:
    """The summary of a run's events so far."""

    def __init__(self, before: Summary) -> None:
        self.summary = before.model_copy(update={"stage": "base", "stage_done": 0, "stage_total": 0})
        self._average = Average()

    def see(self, event: Event) -> None:
        changes = self._changes(event)
        if changes:
            self.summary = self.summary.model_copy(update=changes)

    def _changes(self, event: Event) -> dict[str, object]:
        match event:
            case events.Progress():
                return {"stage": event.stage, "stage_done": event.done, "stage_total": event.total}
            case events.Started():
                return {"stage": "", "step": event.step, "steps": event.steps, "saved_step": event.step}
            case events.Stepped():
                self._average.update(event)
                return {
                    "stage": "",
                    "step": event.step,
                    "loss": self._average.loss,
                    "seconds_per_step": self._average.seconds,
                    "memory_bytes": event.memory_bytes,
                }
            case events.Saved(final=False):
                return {"saved_step": event.step}
            case events.Sampled():
                return {"sample": f"{event.path.parent.name}/{event.path.name}", "stage": ""}
            case _:
                return {}


class JobRun:
    """A claimed job being trained in this process."""

    def __init__(self, claim: Claim, device: str, bases: Bases, stop: Stop, console: Console) -> None:
        self.claim, self.device, self.bases, self.stop, self.console = claim, device, bases, stop, console
        self.folder = RunFolder(claim.job.run)
        self.tracker = Tracker(claim.job.progress)
        self._reported = float("-inf")
        self._stepping = False

    def run(self) -> bool:
        """Trains it to its end, whatever that is, and says so in the store; whether it went without a failure.

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

    def _outcome(self) -> tuple[State, Failure | None]:
        try:
            return self._train(), None
        except Lost:
            raise
        except Exception as error:
            failure = _for_job(explain(error), self.claim.job.id)
            self._say(f"It failed. {failure.what}")
            return "failed", failure

    def _enter_into_library(self) -> None:
        """Before the job's end, while nobody else may write into its folder; not worth failing it for."""
        job, queue = self.claim.job, self.claim.queue
        try:
            Library(queue.home, queue.store).add(self.folder.adapter, job=job.id)
        except Exception as error:
            self._say(f"Warning: it is not in the library. {explain(error).what}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _train(self) -> State:
        job = self.claim.job
        whole = config.compose([config.Layer(f"job {job.id}", job.request.config)])
        resume = self._make_ready(whole)
        with claimed(whole, self.folder.path, insist=not resume) as (whole, warning):
            if warning:
                self._say(f"Warning: {warning}")
            return self._follow(whole, resume)

    def _follow(self, whole: TrainConfig, resume: bool) -> State:
        source = train(
            whole, self.folder.path, resume=resume, device=self.device, commands=self._command, bases=self.bases
        )
        with closing(source), display_for(self.console) as display:
            for event in self.folder.record(tracked(source, whole, self.folder.path)):
                display.show(event)
                self._note(event, whole)
                if (ended := self._ended(event)) is not None:
                    return ended
        raise AssertionError("the last event of a run is Finished")

    def _make_ready(self, whole: TrainConfig) -> bool:
        """Whether it goes on from a checkpoint. A job that has never run must not find another run in its folder."""
        job, path = self.claim.job, self.folder.path
        self.folder.remove_leftovers()
        if job.started is None:
            runs.check_folder(path, whole, resume=job.request.resume)
        if job.attempts == 1 and not job.request.resume:
            self.folder.events.unlink(missing_ok=True)
        return job.request.resume if job.started is None else checkpoint.newest(path) is not None

    def _note(self, event: Event, whole: TrainConfig) -> None:
        """Keeps the store up to date: at once where something changes, else once a second."""
        self.tracker.see(event)
        if isinstance(event, events.Started):
            self.claim.begin()
            self.folder.write_config(whole, f"spectral-studio {__version__}")
        if isinstance(event, events.Started | events.Saved):  # after the last step's checkpoint nothing is lost
            self._stepping = event.step < whole.steps
        often = isinstance(event, events.Stepped | events.Progress)
        if not often or time.monotonic() - self._reported >= _REPORT_SECONDS:
            self.claim.report(self.tracker.summary, saved=isinstance(event, events.Saved))
            self._reported = time.monotonic()

    def _command(self) -> Command | None:
        """What the loop is to do after this step. A command to stop counts as obeyed when the job has stopped."""
        asked = self.claim.asked()
        if (command := self._stopping(asked)) is not None:
            return command
        for command in ("save", "sample"):
            if command in asked:
                self.claim.obeyed(command)
                return command
        return None

    def _ended(self, event: Event) -> State | None:
        """The state that the job ends in with this event. Between steps the loop listens itself, and saves first."""
        if isinstance(event, events.Finished):
            return self._stopped() if event.reason == "paused" else event.reason
        if self._stepping and isinstance(event, events.Stepped | events.Saved):
            return None
        command = self._stopping(self.claim.asked())
        if command == "cancel" or (command is not None and not self._stepping):
            return "cancelled" if command == "cancel" else self._stopped()
        return None

    def _stopping(self, asked: list[Ask]) -> Command | None:
        if "cancel" in asked:
            return "cancel"
        return "pause" if "pause" in asked or self.stop.asked else None

    def _stopped(self) -> State:
        return "paused" if "pause" in self.claim.asked() else "interrupted"


def _for_job(failure: Failure, id: str) -> Failure:
    if failure.remedy is None:
        return failure
    return replace(failure, fix=f"{failure.fix} Again with less: studio jobs retry {id} --preset {failure.remedy}.")
