"""Adapters as other programs read them: made beside the requests by a clerk of their own, kept for a day."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from adapters.atomic import atomic_path
from adapters.errors import MissingError, StudioError, UserInputError
from studio.clerk import Clerk
from studio.library import Library

_PATIENCE_SECONDS = 3600.0
_KEPT_SECONDS = 86400.0


@dataclass(frozen=True)
class Form:
    title: str
    who: str
    """Who reads it, before anything is made."""
    note: str = ""


FORMS = {
    "kohya": Form("LoRA", "A1111, Forge, ComfyUI, SwarmUI, InvokeAI, kohya_ss"),
    "diffusers": Form("diffusers", "Python programs, by load_lora_weights"),
    "merged-checkpoint": Form("Whole model", "whatever loads a checkpoint", "The base and the adapter in one file."),
}
"""By the name that studio export has for it."""


class Made(BaseModel):
    """What became of an adapter, as the clerk tells it."""

    layers: int
    error: float
    """Relative; 0 where it is exact but for rounding."""
    left_out: list[str]
    read_by: dict[str, str]
    warning: str


class Exports:
    """home/web/exports: ID.FORM.safetensors, and beside it ID.FORM.json, which tells that it is whole."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.folder = library.home / "web" / "exports"
        self.revision = 0
        """Grows whenever one is begun or done."""
        self._lock = threading.Lock()
        self._clerk = Clerk("exporter", _PATIENCE_SECONDS)
        self._pool = ThreadPoolExecutor(1, "studio-exports")
        self._asked: dict[tuple[str, str], Future[None]] = {}

    def begin(self, id: str, form: str, base: str | None = None) -> None:
        """Has it made, once; UserInputError where the format is none, MissingError where the adapter is away."""
        if form not in FORMS:
            raise UserInputError(f"There is no format {form[:40]!r}.", f"Known: {', '.join(FORMS)}.")
        id = self.library.get_adapter(id).id
        self.library.path_of(id)
        self.clean()
        if self.made(id, form) is None and not self.is_busy(id, form):
            self._asked[id, form] = self._pool.submit(self._make, id, form, base)
            self._moved()

    def _moved(self) -> None:
        with self._lock:
            self.revision += 1

    def _make(self, id: str, form: str, base: str | None) -> None:
        file = self._file(id, form)
        try:
            home = str(self.library.home)
            told = self._clerk.ask("export", home=home, id=id, form=form, out=str(file), base=base)
            with atomic_path(file.with_suffix(".json")) as part:
                part.write_text(Made.model_validate(told).model_dump_json(), encoding="utf-8")
        finally:
            self._moved()

    def is_busy(self, id: str, form: str) -> bool:
        return (asked := self._asked.get((id, form))) is not None and not asked.done()

    def refusal(self, id: str, form: str) -> str:
        """Why it was not made the last time, in words; else nothing."""
        asked = self._asked.get((id, form))
        error = asked.exception() if asked is not None and asked.done() and not asked.cancelled() else None
        if error is None:
            return ""
        return str(error) if isinstance(error, StudioError | OSError) else f"It could not be made: {error}"

    def made(self, id: str, form: str) -> Made | None:
        """What is to be said of it, where it is there."""
        try:
            told = self._file(id, form).with_suffix(".json").read_text(encoding="utf-8")
            return Made.model_validate_json(told) if self._file(id, form).is_file() else None
        except (FileNotFoundError, ValidationError):
            return None

    def file(self, id: str, form: str) -> Path:
        """MissingError where it is not there."""
        if form not in FORMS or self.made(self.library.get_adapter(id).id, form) is None:
            raise MissingError("It has not been made, or was cleared away.", "Make it again.")
        return self._file(self.library.get_adapter(id).id, form)

    def _file(self, id: str, form: str) -> Path:
        return self.folder / f"{id}.{form}.safetensors"

    def clean(self) -> None:
        """Takes away what is older than a day, half-written files included."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                path.unlink(missing_ok=True)

    def forget(self, id: str) -> None:
        """Takes away what was made of an adapter that is deleted."""
        for path in self.folder.glob(f"{id}.*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._clerk.close()
