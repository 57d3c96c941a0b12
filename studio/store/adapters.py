"""What is done to rows of the library, each within the caller's transaction. No text is put into SQL: all is bound."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy import text as sql
from sqlalchemy.orm import InstrumentedAttribute, Session

from adapters.errors import MissingError, UserInputError
from studio.paths import LIBRARY_PREFIX
from studio.store.jobs import now
from studio.store.tables import LibraryAdapter


def changes(session: Session) -> int:
    """How often any entry was added, changed or taken out; the database counts."""
    return session.scalar(sql("SELECT number FROM library_changes")) or 0


def find(session: Session, id: str) -> LibraryAdapter:
    """The entry of that id, with or without "lib:", or of the only id that begins so; MissingError without one."""
    start = id.removeprefix(LIBRARY_PREFIX)
    query = select(LibraryAdapter).where(LibraryAdapter.id.startswith(start, autoescape=True))
    found = session.scalars(query.limit(2)).all() if start.isascii() and start.isalnum() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserInputError(f"Several adapters' ids begin with {start}.", "Write more of it.")
    raise MissingError(f"The library has no adapter {id!r}.", "studio library list tells their ids.")


def known(session: Session, ids: Sequence[str]) -> list[LibraryAdapter]:
    """The entries of these whole ids, in their order; those that are not in the library are left out."""
    wanted = func.json_each(json.dumps(ids)).table_valued("value")  # a list of binds has its limit
    query = select(LibraryAdapter).where(LibraryAdapter.id.in_(select(wanted.c.value)))
    found = {entry.id: entry for entry in session.scalars(query)}
    return [found[id] for id in ids if id in found]


def children(session: Session, id: str) -> list[LibraryAdapter]:
    """What was fused of it."""
    query = select(LibraryAdapter).where(_holds(LibraryAdapter.parents, id))
    return list(session.scalars(query.order_by(LibraryAdapter.seq)))


def of_job(session: Session, job: str) -> LibraryAdapter | None:
    """The newest that this job has made."""
    query = select(LibraryAdapter).where(LibraryAdapter.job == job)
    return session.scalar(query.order_by(LibraryAdapter.seq.desc()).limit(1))


def listed(
    session: Session, text: str, *, tag: str, base: str, trashed: bool, limit: int | None
) -> list[LibraryAdapter]:
    """Those that hold every word of the text, the newest first; "": any tag, any base.

    Args:
        base: its name, or how its hash begins.
    """
    gone = LibraryAdapter.trashed_at
    query = select(LibraryAdapter).where(gone.is_not(None) if trashed else gone.is_(None))
    for word in _plain(text).split():
        query = query.where(func.instr(LibraryAdapter.words, word) > 0)
    if tag:
        query = query.where(_holds(LibraryAdapter.tags, tag))
    if base:
        named, hashed = LibraryAdapter.base == base, LibraryAdapter.base_hash.startswith(base, autoescape=True)
        query = query.where(named | hashed)
    return list(session.scalars(query.order_by(LibraryAdapter.seq.desc()).limit(limit)))


def trashed_before(session: Session, moment: datetime) -> list[LibraryAdapter]:
    return list(session.scalars(select(LibraryAdapter).where(LibraryAdapter.trashed_at <= moment)))


def supersede(session: Session, job: str, id: str) -> None:
    """A job whose worker died between its adapter and its end has made it twice: the first goes to the trash."""
    others = update(LibraryAdapter).where(LibraryAdapter.job == job, LibraryAdapter.id != id)
    session.execute(others.values(trashed_at=now()).execution_options(synchronize_session=False))


def index(entry: LibraryAdapter) -> None:
    """Notes what it is found by; to be called whenever that changes."""
    told = (entry.name, entry.trigger, entry.class_word, entry.method, entry.base, *entry.tags)
    entry.words = _plain(" ".join(told))


def _plain(text: str) -> str:
    """Without what people do not mean to tell apart: case, and ways to write the same letter."""
    return unicodedata.normalize("NFKC", text).casefold()


def _holds(column: InstrumentedAttribute[list[str]], value: str) -> ColumnElement[bool]:
    """Whether a JSON list has that text in it."""
    each = func.json_each(column).table_valued("value")
    return select(each.c.value).where(each.c.value == value).exists()
