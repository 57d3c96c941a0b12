"""A batch's folder, on this disk or anywhere that fsspec reaches.

batch.json · configs/<run>.yaml · runs/<run>/ (a run's folder each) · report.html · report.csv
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from adapters.atomic import atomic_path
from adapters.errors import MissingError, UserInputError


class Storage:
    """Whole files by name below one folder. A reader sees a file whole or not at all.

    On a disk by renaming; object stores do so by themselves.
    """

    def __init__(self, url: str) -> None:
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise MissingError(f"{url} cannot be reached: {error}", "Install the package that it names.") from error
        except ValueError as error:
            raise UserInputError(f"{url} is no place to write to: {error}", "Use a folder or an URL.") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        self.url = str(self.root) if self.local else url.rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def place(self, name: str) -> str:
        """Where the file lies, as people write it."""
        return f"{self.url}/{name}"

    def within(self, name: str) -> Storage:
        """The storage below that folder."""
        return Storage(self.place(name))

    def read(self, name: str) -> bytes | None:
        """A file's contents; None where there is none."""
        try:
            return self.fs.cat_file(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        if self.local:
            with atomic_path(self.path(name)) as temporary:
                temporary.write_bytes(content)
        else:
            self.fs.pipe_file(self.path(name), content)

    def upload(self, file: Path, name: str) -> None:
        if self.local:
            self.write(name, file.read_bytes())
        else:
            self.fs.put_file(str(file), self.path(name))

    def download(self, name: str, file: Path) -> None:
        """Into a file that is there whole or not at all."""
        with atomic_path(file) as temporary:
            self.fs.get_file(self.path(name), str(temporary))

    def names(self, folder: str) -> list[str]:
        """The files right in that folder, sorted; none where it is not there."""
        return self._listed(folder, "file")

    def folders(self, folder: str) -> list[str]:
        """The folders right in that folder, sorted."""
        return self._listed(folder, "directory")

    def _listed(self, folder: str, kind: str) -> list[str]:
        self.fs.invalidate_cache()  # others write here, too
        try:
            found = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == kind]
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))
