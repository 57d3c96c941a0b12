"""The library of adapters: files by the sha256 of their bytes, and what is known of them. Imports no torch but to add.

    library = Library()
    id = library.add(Path("runs/sks-dog-1"))     # or a file, of ours or of another program
    library.list_adapters("dog")
    library.path_of(id)

A copy of the file is `home`/library/ID.safetensors, its picture ID.jpg beside it. Names, tags and words are columns of
the database, and never part of a path. A file is whole before its entry is written; one whose entry was never written,
because the machine stopped, is taken up by adding the same file again.
"""

from __future__ import annotations

import io
import shutil
import unicodedata
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.atomic import atomic_path
from adapters.digest import file_sha256
from adapters.errors import MissingError, StudioError, UserInputError
from studio import locks
from studio.paths import data_dir
from studio.store import LibraryAdapter, Store, adapters, jobs

if TYPE_CHECKING:
    from adapters.files import AdapterCard

LONGEST = 200
"""Characters of a name or a tag."""
_OF_A_RUN = "adapter.safetensors"
"""trainers.result.ADAPTER_NAME, whose module imports torch."""
_WAIT_SECONDS = 60.0
_JOINERS = "\u200c\u200d"
"""Unprintable, but Persian and emoji are written with them."""


class Library:
    """The adapters of one data folder. Opened once a process, for any of its threads."""

    def __init__(self, home: Path | None = None, store: Store | None = None) -> None:
        """`store`: the folder's, where the process has it open."""
        self.home = home or data_dir()
        self.folder = self.home / "library"
        self.store = store or Store(self.home / "studio.db")

    # --- looking ------------------------------------------------------------------------------------------

    def revision(self) -> int:
        """Grows whenever any entry changes, whoever changes it."""
        with self.store.reading() as session:
            return adapters.changes(session)

    def list_adapters(
        self,
        text: str = "",
        *,
        tag: str | None = None,
        base: str | None = None,
        trashed: bool = False,
        limit: int | None = None,
    ) -> list[LibraryAdapter]:
        """The newest first: those where each word of `text` is in the name, trigger, class, tags, method or base.

        Args:
            base: name of the base that they belong to, or how its hash begins.
            trashed: what is in the trash, instead of what is not.
        """
        told, tag, base = clean(text, len(text)), clean(tag or "").casefold(), clean(base or "")
        with self.store.reading() as session:
            return adapters.listed(session, told, tag=tag, base=base, trashed=trashed, limit=limit)

    def get_adapter(self, id: str) -> LibraryAdapter:
        """The entry of that id, or of the only one that begins so; MissingError where there is none."""
        with self.store.reading() as session:
            return adapters.find(session, id)

    def of_job(self, job: str) -> LibraryAdapter | None:
        """What a job has made, in the trash or not."""
        with self.store.reading() as session:
            return adapters.of_job(session, job)

    def path_of(self, id: str) -> Path:
        """The file. UserInputError where it is in the trash, MissingError where it has vanished."""
        entry = self.get_adapter(id)
        if entry.trashed_at is not None:
            raise UserInputError(
                f"{entry.name} is in the trash.",
                f"Take it out again: on the Library page, or by studio library restore {entry.id[:12]}.",
            )
        if not self.has_file(entry):
            raise MissingError(
                f"The file of {entry.name} has vanished: there is no {self.folder / entry.file}.",
                "Add the same file again (studio library add FILE), or studio library trash it.",
            )
        return self.folder / entry.file

    def has_file(self, entry: LibraryAdapter) -> bool:
        """Whether its file is still on the disk."""
        return (self.folder / entry.file).is_file()

    def thumbnail(self, id: str) -> bytes | None:
        """A JPEG of at most 256 pixels a side; None where the adapter came without a picture."""
        entry = self.get_adapter(id)
        path = None if entry.thumbnail is None else self.folder / entry.thumbnail
        return path.read_bytes() if path is not None and path.is_file() else None

    def parents(self, id: str) -> list[LibraryAdapter]:
        """What a fused one was made of, as far as that is in the library; `entry.parents` has all ids."""
        with self.store.reading() as session:
            return adapters.known(session, adapters.find(session, id).parents)

    def children(self, id: str) -> list[LibraryAdapter]:
        """What was fused of it."""
        with self.store.reading() as session:
            return adapters.children(session, adapters.find(session, id).id)

    # --- adding -------------------------------------------------------------------------------------------

    def add(self, given: Path, *, name: str | None = None, job: str | None = None) -> str:
        """Copies an adapter file, or a run's, and returns its id; reads no more than its header and its bytes' hash.

        The same file again is the same entry: it comes back from the trash, and its file if that had vanished.
        Imports torch.

        Raises:
            FileFormatError: no adapter. MissingError: no such file. DiskFullError: nothing has changed then.
        """
        from adapters.formats.open import read_facts

        path = given / _OF_A_RUN if given.is_dir() else given
        method, card = read_facts(path)
        entry = _entry(file_sha256(path), method, card)
        entry.name = clean(_name(card, path)) if name is None else _given(name)
        entry.job = job
        with self._changing():
            self._copy(path, entry.id)
            entry.thumbnail = self._save_thumbnail(path, card, entry.id)
            self._enter(entry)
        return entry.id

    def _enter(self, entry: LibraryAdapter) -> None:
        with self.store.writing() as session:
            if found := adapters.known(session, [entry.id]):
                found[0].trashed_at = None
                return
            adapters.index(entry)
            session.add(entry)
            if entry.job is not None:
                adapters.supersede(session, entry.job, entry.id)

    def _copy(self, path: Path, id: str) -> None:
        from adapters.formats.peft_options import sidecar

        target = self.folder / f"{id}.safetensors"
        if target.is_file():
            return
        if sidecar(path).is_file():  # without it PEFT's alphas are lost
            _copy_file(sidecar(path), sidecar(target))
        with atomic_path(target) as part:
            shutil.copyfile(path, part)
            if file_sha256(part) != id:
                raise StudioError(f"{path} was written to while it was copied.", "Try again when it is whole.")

    def _save_thumbnail(self, path: Path, card: AdapterCard, id: str) -> str | None:
        from trainers.thumbnail import jpeg_of, small_jpeg, thumbnail_of

        raw = jpeg_of(card.thumbnail) or (jpeg_of(thumbnail_of(path.parent)) if path.name == _OF_A_RUN else None)
        picture = None if raw is None else small_jpeg(io.BytesIO(raw))
        if picture is None:
            return None
        with atomic_path(self.folder / f"{id}.jpg") as part:
            part.write_bytes(picture)
        return f"{id}.jpg"

    @contextmanager
    def _changing(self) -> Generator[None]:
        """One process at a time; what a killed one has left half-written is removed."""
        lock = locks.hold(self.folder / ".lock", _WAIT_SECONDS)
        if lock is None:
            raise StudioError("Another process is changing the library's files.", "Try again in a moment.")
        try:
            for part in self.folder.glob(".*.part"):
                part.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    # --- changing -----------------------------------------------------------------------------------------

    def rename(self, id: str, name: str) -> LibraryAdapter:
        with self._editing(id) as entry:
            entry.name = _given(name)
        return entry

    def tag(self, id: str, tags: Sequence[str]) -> LibraryAdapter:
        """Adds tags; they are kept in lower case, each once."""
        with self._editing(id) as entry:
            entry.tags = list(dict.fromkeys([*entry.tags, *(_given(tag).casefold() for tag in tags)]))
        return entry

    def untag(self, id: str, tags: Sequence[str]) -> LibraryAdapter:
        """Takes tags away. UserInputError where it does not have one of them."""
        with self._editing(id) as entry:
            gone = [clean(tag).casefold() for tag in tags]
            for tag in gone:
                if tag not in entry.tags:
                    has = ", ".join(entry.tags) or "none"
                    raise UserInputError(f"{entry.name} has no tag {tag!r}.", f"Its tags: {has}.")
            entry.tags = [tag for tag in entry.tags if tag not in gone]
        return entry

    def trash(self, id: str) -> LibraryAdapter:
        """Puts it out of sight; its file stays until the trash is emptied."""
        with self._editing(id) as entry:
            entry.trashed_at = entry.trashed_at or jobs.now()
        return entry

    def restore(self, id: str) -> LibraryAdapter:
        """Takes it out of the trash, as it was."""
        with self._editing(id) as entry:
            entry.trashed_at = None
        return entry

    def empty_trash(self, older_than: timedelta = timedelta(0)) -> list[LibraryAdapter]:
        """Deletes for good what has been in the trash for so long; returns the entries as they were."""
        with self._changing(), self.store.writing() as session:
            gone = adapters.trashed_before(session, jobs.now() - older_than)
            for entry in gone:  # files first: an entry without a file is told, a file without an entry is not
                for path in self.folder.glob(f"{entry.id}.*"):
                    path.unlink(missing_ok=True)
                session.delete(entry)
        return gone

    @contextmanager
    def _editing(self, id: str) -> Generator[LibraryAdapter]:
        with self.store.writing() as session:
            entry = adapters.find(session, id)
            yield entry
            adapters.index(entry)


def clean(text: str, limit: int = LONGEST) -> str:
    """A text on one line: control characters, half characters and turns of direction become spaces."""
    kept = "".join(one if one.isprintable() or one in _JOINERS else " " for one in text)
    return unicodedata.normalize("NFC", " ".join(kept.split()))[:limit].rstrip()


def _given(text: str) -> str:
    """A name or a tag that a person has given."""
    found = clean(text, limit=len(text))
    if not found or len(found) > LONGEST:
        raise UserInputError(f"{text[:40]!r} is no name or tag.", f"Give 1 to {LONGEST} characters.")
    return found


def _entry(id: str, method: str, card: AdapterCard) -> LibraryAdapter:
    return LibraryAdapter(
        id=id,
        name="",
        trigger=clean(card.trigger),
        class_word=clean(card.class_word),
        method=clean(method),
        base=clean(card.base),
        base_hash=clean(card.base_hash),
        file=f"{id}.safetensors",
        parents=list(dict.fromkeys(clean(one.sha256) for one in card.concepts if one.sha256)),
        created=jobs.now(),
    )


def _name(card: AdapterCard, path: Path) -> str:
    """What it was taught, or else what its file or its run's folder is called."""
    subjects = ", ".join(f"{trigger} {class_word}".strip() for trigger, class_word in card.subjects)
    return subjects or (path.absolute().parent.name if path.name == _OF_A_RUN else path.stem) or "untitled"


def _copy_file(source: Path, target: Path) -> None:
    with atomic_path(target) as part:
        shutil.copyfile(source, part)
