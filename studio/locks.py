"""Who is alive: a process holds a lock (flock) as long as it lives, and the kernel takes it back however it ends.

No process number is ever looked at: numbers are used again, and mean nothing in another container.
"""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


def run_lock(folder: Path) -> Path:
    """The lock of a run's folder: held by whoever trains in it."""
    return folder / ".lock"


def hold(path: Path, timeout: float = 0) -> BaseFileLock | None:
    """The lock, held; None where another holds it still after `timeout` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout, fallback_to_soft=False)  # a soft one would outlive its process
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def is_held(path: Path) -> bool:
    """Whether a living process holds it."""
    if not path.exists():
        return False
    lock = hold(path)
    if lock is None:
        return True
    lock.release()
    return False
