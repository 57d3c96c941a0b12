"""Whether somebody works at the queue, and starting somebody. Imports no torch.

A worker holds the lock `home`/workers/<device>.lock as long as it lives, so a device has one worker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from adapters.errors import StudioError
from studio import locks
from studio.paths import slug, state_dir
from studio.queue import Queue
from studio.store.states import ACTIVE, WAITING

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
    told = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, check=False, timeout=30)
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


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
            env={**os.environ, "SPECTRAL_STUDIO_DATA": str(home)},
            start_new_session=True,
        )
    deadline = time.monotonic() + _STARTING_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if new := set(alive(home)) - before:
            return new.pop()
        time.sleep(0.05)
    raise StudioError(f"No worker could be started; its log is {log}.", "Start one by hand: studio worker.")


def _new_log() -> Path:
    log = state_dir() / "logs" / time.strftime(f"worker-%Y-%m-%d-%H%M%S-{os.getpid()}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    return log
