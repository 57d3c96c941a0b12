"""What a person reads when something goes wrong: what happened, what to do, and an exit code that means it.

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | an error with no code of its own |
| 2 | the command, a key, a value or the pictures are not right |
| 3 | something is missing: a base, a file, a package |
| 4 | a file is not what it should be |
| 5 | training diverged (NaN) |
| 6 | the disk is full, or a folder cannot be written |
| 7 | this does not fit that: another base, other pictures or another configuration on resume |
| 70 | a fault of the app itself; the log holds the traceback |
| 130 | stopped by Ctrl+C (143: by SIGTERM) |
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from adapters.errors import StudioError

BUG_CODE = 70
INTERRUPTED_CODE = 130
DISK_CODE = 6
MISSING_CODE = 3


class Interrupted(Exception):
    """Training stopped on a signal, with its state saved; the message says how to go on."""

    def __init__(self, message: str, code: int = INTERRUPTED_CODE) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Failure:
    """What happened, what to do about it, and the exit code."""

    what: str
    fix: str
    code: int
    remedy: str | None = None
    """The preset that would help, for a button that tries again with it."""


def explain(error: BaseException) -> Failure:
    """Any error as a Failure; one that nobody foresaw is written to a log file and called a bug."""
    if isinstance(error, StudioError):
        return Failure(error.what, error.fix, error.exit_code)
    if isinstance(error, Interrupted):
        return Failure(str(error), "", error.code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("Stopped.", "What was saved before stays; nothing half-written is left.", INTERRUPTED_CODE)
    if isinstance(error, OSError) and (known := _explain_os(error)):
        return known
    if (place := _out_of_memory(error)) is not None:
        return Failure(
            f"{place} ran out of memory.",
            "Use --preset low-memory, a smaller --set batch_size=1, or a smaller --set data.resolution=768.",
            1,
            remedy="low-memory",
        )
    return Failure(
        f"This is a bug in Spectral Studio: {type(error).__name__}: {_first_line(error)}",
        f"The traceback is in {write_log(error)}; please send it with what you did.",
        BUG_CODE,
    )


def _out_of_memory(error: BaseException) -> str | None:
    """Which memory it was; torch has a class for the GPU's, and for main memory only a text."""
    if type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in str(error):
        return "The GPU"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "The machine"
    return None


def show(failure: Failure) -> None:
    """The sentences on stderr."""
    console = Console(stderr=True)
    for text, style in ((failure.what, "bold red"), (failure.fix, "")):
        if text:
            console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _explain_os(error: OSError) -> Failure | None:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(f"The disk is full{where}.", "Free some space or choose another --out.", DISK_CODE)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Failure(
            f"No permission{where}: {error.strerror}.", "Choose another folder, or change its rights.", DISK_CODE
        )
    if error.errno == errno.ENOENT and error.filename:
        return Failure(f"There is no {error.filename}.", "Check the path.", MISSING_CODE)
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST) and error.filename:
        return Failure(f"{error.filename}: {error.strerror}.", "Choose another path.", 2)
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "(no message)"


def write_log(error: BaseException) -> Path | str:
    """The traceback in a file of its own; where no file can be written, on stderr."""
    from studio.paths import state_dir

    text = "".join(traceback.format_exception(error))
    path = state_dir() / "logs" / time.strftime(f"%Y-%m-%d-%H%M%S-{os.getpid()}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"command: {sys.argv}\n\n{text}", encoding="utf-8")
    except OSError:
        sys.stderr.write(text)
        return "the lines above"
    return path
