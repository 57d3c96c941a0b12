"""The database file: opening, upgrading, transactions, and what its refusals mean.

WAL: readers never wait for a writer, nor a writer for them. synchronous=FULL: a transaction is on the disk (one fsync)
when it returns, so that a job survives the power's failure once `submit` has answered; there are about two writes a
second while something trains. A writer waits 30 s for another. The file must lie on a local disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from adapters.atomic import atomic_path
from adapters.errors import DiskFullError, FileFormatError, MismatchError, StudioError
from studio.store.migrations import MIGRATIONS, Migration

BUSY_SECONDS = 30.0


class Store:
    """The database in one file; opened once a process, for any of its threads. A forked child opens its own."""

    def __init__(self, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        """Creates or upgrades the file. MismatchError where a newer version of the app has made it."""
        self.path = path
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _upgrade(path, migrations)
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")

    @contextmanager
    def reading(self) -> Generator[Session]:
        """A session that sees one state of the database; what it has read stays readable."""
        with _explained(self.path), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Generator[Session]:
        """A transaction that nobody else's comes between: committed at the end, or undone by any error."""
        with _explained(self.path), Session(self._writer, expire_on_commit=False) as session, session.begin():
            session.connection()  # begins here, not at the first statement
            yield session

    def close(self) -> None:
        self._engine.dispose()


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, in the way of `_begin`
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _upgrade(path: Path, migrations: Sequence[Migration]) -> None:
    """Runs the migrations that the file has not seen, after a copy of it as it was; one process at a time."""
    with FileLock(f"{path}.lock"), closing(sqlite3.connect(path, BUSY_SECONDS, isolation_level=None)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise MismatchError(
                f"{path} was written by a newer version of Spectral Studio (its format is {version}, and this version "
                f"knows {len(migrations)}).",
                "Install the newer version again, or set SPECTRAL_STUDIO_DATA to another folder.",
            )
        if 0 < version < len(migrations):
            _back_up(connection, path.with_name(f"{path.name}.format-{version}"))
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StudioError(
                f"The disk of {path} cannot hold a database that several processes use.",
                "Set SPECTRAL_STUDIO_DATA to a folder on a local disk.",
            )
        for number, statements in enumerate(migrations[version:], version + 1):
            _migrate(connection, statements, number)


def _migrate(connection: sqlite3.Connection, statements: Migration, number: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in (*statements, f"PRAGMA user_version = {number}"):
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    with atomic_path(target) as temporary, closing(sqlite3.connect(temporary)) as copy:
        connection.backup(copy)


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """SQLite's refusals as sentences."""
    try:
        yield
    except DBAPIError as error:
        raise _in_words(error.orig, path) from error
    except sqlite3.Error as error:
        raise _in_words(error, path) from error


def _in_words(error: Any, path: Path) -> BaseException:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(f"The disk is full: {path} could not be written.", "Free some space and try again.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StudioError(
            f"{path} has been in use by another process for {BUSY_SECONDS:.0f} s.", "Try again in a moment."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return FileFormatError(
            f"{path} is damaged, or no database: {error}",
            "Move it away: a new one is made. The runs' folders hold everything but the list of jobs.",
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return DiskFullError(f"{path} cannot be written: {error}.", "Check the folder's rights and its disk.")
    return error
