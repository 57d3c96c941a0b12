"""What the tests of workers share: jobs on the quick configuration, workers in this process and in others."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import StringIO
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open

from studio import train_run
from studio.progress import LineDisplay
from studio.queue import Queue
from studio.stopping import Stop
from studio.store import Job
from studio.submitting import checked
from studio.worker import Worker
from studio.workers import Terms
from tests.support import adapter_tensors
from trainers.config import TrainConfig
from trainers.engine import Engine, StepResult
from trainers.events import Event, Started, Stepped

UNTIL_EMPTY = Terms(idle=0, max_crashes=10_000)
_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.jobs"])


def submit(queue: Queue, config: TrainConfig, folder: Path | None = None) -> str:
    return queue.submit(checked(config, folder))


def worker(queue: Queue, terms: Terms = UNTIL_EMPTY, stop: Stop | None = None) -> Worker:
    """A worker of this process, which prints nothing."""
    return Worker(queue, "device-0", "cpu", stop or Stop(patient=True), Console(file=StringIO()), terms)


def work(queue: Queue) -> None:
    """Does all jobs that wait."""
    assert worker(queue).serve()


def watch(monkeypatch: pytest.MonkeyPatch, see: Callable[[Event], None]) -> None:
    """Has every event of the next jobs seen, when the worker shows it."""

    class Watching(LineDisplay):
        def show(self, event: Event) -> None:
            see(event)

    monkeypatch.setattr(train_run, "display_for", Watching)


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception, step: int = 2) -> None:
    """The first run that comes to that step fails so."""
    whole, failures = Engine.step, iter([error])

    def failing(self: Engine, number: int) -> StepResult:
        if number == step and (now := next(failures, None)) is not None:
            raise now
        return whole(self, number)

    monkeypatch.setattr(Engine, "step", failing)


def start(home: Path, device: str = "device-0") -> BaseProcess:
    """A worker in a process and a group of its own, forked from one that has torch already."""
    process = _SERVER.Process(target=_serve, args=(home, device), daemon=True)
    process.start()
    return process


def _serve(home: Path, device: str) -> None:
    os.setsid()
    stop = Stop(patient=True)
    with stop.listening():
        Worker(Queue(home), device, "cpu", stop, Console(file=StringIO()), UNTIL_EMPTY).serve()


def same(job: Job, reference: Path) -> bool:
    """Whether the job has made that very adapter, bit for bit."""
    made, wanted = adapter_tensors(job.run / "adapter.safetensors"), adapter_tensors(reference)
    return made.keys() == wanted.keys() and all(made[name].equal(wanted[name]) for name in wanted)


def check_files(folder: Path) -> None:
    """Every file of safetensors that is there under its own name can be read to its end."""
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)


def check_steps(events: list[Event], steps: int) -> None:
    """Each step follows the one before it, or the start of its attempt: nobody else was writing."""
    step = 0
    for event in events:
        if isinstance(event, Started):
            step = event.step
        elif isinstance(event, Stepped):
            assert event.step == step + 1
            step = event.step
    assert step == steps
