"""What the clerk does with the library: takes files in, and writes them for other programs. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio import exporting, submitting
from studio.library import Library
from studio.queue import Queue


def take(home: str, path: str, name: str | None = None) -> str:
    """The id of a file that is now in the library. Refuses what is no adapter."""
    return Library(Path(home)).add(Path(path), name=name)


def export(home: str, id: str, form: str, out: str, base: str | None = None) -> dict[str, Any]:
    """Writes an adapter of the library to `out`; what became of it, and which program reads it."""
    source = Library(Path(home)).path_of(id)
    written = exporting.write(exporting.Request(source, form, Path(out), base=base))
    return {
        "layers": written.done.layers,
        "error": written.done.error if written.done.error > exporting.EXACT else 0.0,
        "left_out": list(written.done.left_out),
        "read_by": written.read_by,
        "warning": written.warning or "",
    }


def further(home: str, job: str, steps: int) -> dict[str, Any]:
    """The submission of so many steps more of a training."""
    return submitting.further(Queue(Path(home)).get_job(job), steps).model_dump(mode="json")


QUESTIONS: dict[str, Callable[..., Any]] = {"take": take, "export": export, "further": further}
