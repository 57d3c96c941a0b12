"""Forms that are kept on the disk while they are filled in, so that neither a reload nor an error loses anything.

ROOT/<id>/draft.json. Ids are made here; one that comes from outside is checked letter by letter before it becomes part
of a path.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from adapters.atomic import atomic_path
from adapters.errors import FileFormatError, MissingError
from studio.store.jobs import new_id

ID = re.compile(r"[a-z0-9]{10}")


class Form(BaseModel):
    """What has been filled in; everything but the id has a default."""

    id: str


Kept = TypeVar("Kept", bound=Form)


class Forms(Generic[Kept]):
    """All forms of one kind, below `root`."""

    def __init__(self, root: Path, kind: type[Kept]) -> None:
        self.root, self.kind = root, kind
        self._lock = threading.RLock()

    def new(self) -> Kept:
        """Not on the disk before it holds anything."""
        return self.kind(id=new_id())

    def get(self, id: str) -> Kept:
        """The form of that id, empty where nothing was ever put into it; MissingError where it is no id."""
        try:
            return self.kind.model_validate_json((self.folder(id) / "draft.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return self.kind(id=id)
        except ValueError as error:
            raise FileFormatError("That draft cannot be read.", "Begin a new one.") from error

    @contextmanager
    def changing(self, id: str) -> Generator[Kept]:
        """The form, saved at the end if it has changed; one change at a time."""
        with self._lock:
            form = self.get(id)
            before = form.model_copy(deep=True)
            yield form
            if form != before:
                self._save(form)

    def folder(self, id: str) -> Path:
        if not ID.fullmatch(id):
            raise MissingError("That is no draft's id.", "Begin a new one.")
        return self.root / id

    def _save(self, form: Kept) -> None:
        folder = self.folder(form.id)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "draft.json") as temporary:
            temporary.write_text(form.model_dump_json(indent=1), encoding="utf-8")
