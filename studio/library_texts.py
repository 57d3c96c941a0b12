"""The library as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table

from studio.job_texts import local_time
from studio.library import Library
from studio.paths import LIBRARY_PREFIX
from studio.progress import size
from studio.store import LibraryAdapter

_SHORT = 12
_NOT_TOLD = ("seq", "words", "file", "thumbnail")
_ROW: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def short(id: str) -> str:
    """An id as commands print it: enough of it to be told from others, and to be written where a path could stand."""
    return f"{LIBRARY_PREFIX}{id[:_SHORT]}"


def table(library: Library, entries: Sequence[LibraryAdapter]) -> Table:
    """A row an adapter."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("adapter", "name", "method", "base", "tags", "size"):
        grid.add_column(name, overflow="fold", no_wrap=name == "adapter")
    for entry in entries:
        cells = (entry.name, entry.method, entry.base, ", ".join(entry.tags), _size(library, entry))
        grid.add_row(short(entry.id), *(escape(cell) for cell in cells))
    return grid


def as_json(library: Library, entry: LibraryAdapter) -> dict[str, Any]:
    """What is known of it, as plain values; `path` is null where its file has vanished."""
    columns = {name: getattr(entry, name) for name in LibraryAdapter.__table__.columns.keys() if name not in _NOT_TOLD}  # noqa: SIM118
    path = str(library.folder / entry.file) if library.has_file(entry) else None
    picture = None if entry.thumbnail is None else str(library.folder / entry.thumbnail)
    return _ROW.dump_python({**columns, "path": path, "thumbnail": picture}, mode="json")


def whole_json(library: Library, entry: LibraryAdapter) -> dict[str, Any]:
    """as_json, and the ids of what was fused of it."""
    return {**as_json(library, entry), "children": [child.id for child in library.children(entry.id)]}


def lines(library: Library, entry: LibraryAdapter) -> Iterator[str]:
    """What `studio library show` prints."""
    yield f"{LIBRARY_PREFIX}{entry.id}: {entry.name}"
    yield f"file: {library.folder / entry.file} ({_size(library, entry)})"
    yield f"method: {entry.method}"
    yield f"base: {entry.base or 'not told'}" + (f" (hash {entry.base_hash})" if entry.base_hash else "")
    parents = {parent.id: parent.name for parent in library.parents(entry.id)}
    told = {
        "trigger": entry.trigger,
        "class": entry.class_word,
        "tags": ", ".join(entry.tags),
        "job": entry.job,
        "made of": ", ".join(f"{parents.get(id, 'one that is not here')} ({short(id)})" for id in entry.parents),
        "part of": ", ".join(f"{child.name} ({short(child.id)})" for child in library.children(entry.id)),
        "added": local_time(entry.created),
        "in the trash since": None if entry.trashed_at is None else local_time(entry.trashed_at),
    }
    yield from (f"{name}: {value}" for name, value in told.items() if value)


def _size(library: Library, entry: LibraryAdapter) -> str:
    return size((library.folder / entry.file).stat().st_size) if library.has_file(entry) else "file has vanished"
