"""A training from the queue, through the events of trainers.loop."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

from rich.console import Console

from studio import __version__, config, runs
from studio.claims import Claim
from studio.failures import Failure, explain
from studio.job_run import JobRun
from studio.progress import Average, display_for
from studio.slots import claimed
from studio.stopping import Stop
from studio.store import State, Summary, TrainRequest
from studio.tracking import tracked
from trainers import checkpoint, events
from trainers.bases import BaseKeeper
from trainers.config import TrainConfig
from trainers.events import Command, Event
from trainers.loop import train

_REPORT_SECONDS = 1.0
_LISTEN_SECONDS = 0.2
"""Between looks at what is asked while a run prepares: half a millisecond each, and a base has hundreds of layers."""


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


class TrainRun(JobRun):
    """A claimed training."""

    def __init__(self, claim: Claim, device: str, bases: BaseKeeper, stop: Stop, console: Console) -> None:
        super().__init__(claim, device, bases, stop, console)
        self.tracker = Tracker(claim.job.progress)
        self._reported = self._listened = float("-inf")
        self._stepping = False

    def _explained(self, error: Exception) -> Failure:
        failure = explain(error)
        if failure.remedy is None:
            return failure
        again = f"studio jobs retry {self.claim.job.id} --preset {failure.remedy}"
        return replace(failure, fix=f"{failure.fix} Again with less: {again}.")

    def _do(self) -> State:
        job = self.claim.job
        whole = config.compose([config.Layer(f"job {job.id}", job.config)])
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
            runs.check_folder(path, whole, resume=self._resumes)
        if job.attempts == 1 and not self._resumes:
            self.folder.events.unlink(missing_ok=True)
        return self._resumes if job.started is None else checkpoint.newest(path) is not None

    @property
    def _resumes(self) -> bool:
        """Whether its first attempt goes on from a checkpoint, too."""
        request = self.claim.job.request
        return isinstance(request, TrainRequest) and request.resume

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
        lately = time.monotonic() - self._listened < _LISTEN_SECONDS
        if isinstance(event, events.Progress) and lately and not self.stop.asked:
            return None
        self._listened = time.monotonic()
        command = self._stopping(self.claim.asked())
        if command == "cancel" or (command is not None and not self._stepping):
            return "cancelled" if command == "cancel" else self._stopped()
        return None
