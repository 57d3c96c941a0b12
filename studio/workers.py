"""Whether somebody works at the queue, and starting somebody. Imports no torch.

A worker holds the lock `home`/workers/<device>.lock as long as it lives, so a device has one worker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import BaseFileLock
from rich.console import Console

from adapters.errors import StudioError, UserInputError
from studio import locks
from studio.paths import slug, state_dir
from studio.queue import MAX_CRASHES, Queue
from studio.start import import_diffusers
from studio.stopping import Stop
from studio.store.states import ACTIVE, WAITING

if TYPE_CHECKING:
    from studio.worker import Worker

IDLE_SECONDS = 600
"""How long a worker that was started by itself waits for another job."""
_STARTING_SECONDS = 30.0


def lock_path(home: Path, device: str) -> Path:
    return home / "workers" / f"{device}.lock"


def alive(home: Path) -> list[str]:
    """The devices that have a living worker."""
    return sorted(path.stem for path in (home / "workers").glob("device-*.lock") if locks.is_held(path))


def devices() -> list[str]:
    """A name for each GPU of this machine, or for its CPU. Asks NVIDIA's tool, since torch would take seconds."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",") if name.strip()]
    else:
        names = [str(number) for number in range(_gpus())]
    return [f"device-{slug(name)}" for name in names or ["0"]]


def _gpus() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        told = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is for the worker to report
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def device_name(number: int) -> str:
    names = devices()
    return names[number] if number < len(names) else f"device-{number}"


@dataclass(frozen=True)
class Terms:
    """When a worker's work is over, besides a signal, and when it gives a job up."""

    once: bool = False
    """After one job."""
    idle: float | None = None
    """After so many seconds in which no job waited."""
    max_crashes: int = MAX_CRASHES
    """Workers that may die over a job, without a checkpoint in between."""


FOREVER = Terms()


def work(queue: Queue, console: Console, gpu: int | None = None, terms: Terms = FOREVER) -> bool:
    """This process is a worker from now on, until it is told to stop or has no more to do (studio.worker.Worker).

    False where it must give way to a new process, because the device answers it no more.
    """
    stop, worker = Stop(), None
    with stop.listening():
        number, lock = _take(queue.home, gpu)  # before torch is there: whoever starts a worker does not wait for that
        while True:
            try:
                if worker is None:
                    worker = _worker(queue, console, stop, number, terms)
                if not worker.serve():
                    return False
            finally:
                lock.release()
            # Only now: a job that was submitted while the lock was held has been left to this worker.
            if stop.asked or terms.once or not queue.list_jobs(WAITING, limit=1):
                return True
            number, lock = _take(queue.home, number)


def _worker(queue: Queue, console: Console, stop: Stop, number: int, terms: Terms) -> Worker:
    import_diffusers()
    from studio.worker import Worker, torch_device

    device = torch_device(number)
    console.print(f"Worker on {device} for the jobs in {queue.home}.", markup=False, highlight=False, soft_wrap=True)
    stop.patient = True
    return Worker(queue, device_name(number), device, stop, console, terms)


def _take(home: Path, gpu: int | None) -> tuple[int, BaseFileLock]:
    """A device that has no worker, held; UserInputError where there is none, or that one has one."""
    numbers = range(len(devices())) if gpu is None else [gpu]
    for patience in (0.0, 1.0):  # whoever looks whether a lock is held holds it for a moment
        for number in numbers:
            if (lock := locks.hold(lock_path(home, device_name(number)), patience)) is not None:
                return number, lock
    raise UserInputError(
        "Every device has a worker already." if gpu is None else f"GPU {gpu} has a worker already.",
        "studio jobs list tells what they do.",
    )


def ensure(queue: Queue) -> bool:
    """Starts workers until there is one for each job that needs one, or for each device; whether it started any.

    StudioError where one does not start.
    """
    starting = locks.hold(queue.home / "workers" / "starting.lock", _STARTING_SECONDS)
    if starting is None:
        return False  # another process is about to
    try:
        needed = min(len(queue.list_jobs((*ACTIVE, *WAITING))), len(devices()))
        missing = needed - len(alive(queue.home))
        for _ in range(missing):
            start(queue.home)
        return missing > 0
    finally:
        starting.release()


def start(home: Path) -> str:
    """Starts a worker that outlives this process and its terminal; returns its device once it holds the lock."""
    before, log = set(alive(home)), _new_log()
    home.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "studio", "worker", "--idle", str(IDLE_SECONDS)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=home,
            env=_environment(home),
            start_new_session=True,
        )
    deadline = time.monotonic() + _STARTING_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if new := set(alive(home)) - before:
            return new.pop()
        time.sleep(0.05)
    raise StudioError(f"No worker has come to life; its log is {log}.", "Start one by hand: studio worker.")


def _environment(home: Path) -> dict[str, str]:
    """This process's, with the same jobs and the same code, though the worker starts in another folder."""
    code = str(Path(__file__).parents[1])
    search = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "SPECTRAL_STUDIO_DATA": str(home), "PYTHONPATH": search}


def _new_log() -> Path:
    log = state_dir() / "logs" / time.strftime(f"worker-%Y-%m-%d-%H%M%S-{os.getpid()}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    return log
