"""The database: its versions, its transactions, and which state may follow which."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from adapters.errors import DiskFullError, FileFormatError, MismatchError, StudioError
from studio.store import Job, State, Store, TrainRequest, database, jobs
from studio.store.migrations import MIGRATIONS
from studio.store.states import ACTIVE, AT_ONCE, OVER, STATES, TOLD, TRANSITIONS, WAITING
from studio.store.tables import Table

ADDED = ("ALTER TABLE jobs ADD COLUMN note VARCHAR NOT NULL DEFAULT 'none yet'",)


def add(store: Store, name: str = "a") -> str:
    """A queued job, by its id."""
    request = TrainRequest(config={"base": "embedded"})
    with store.writing() as session:
        folder = Path("/runs") / name
        return jobs.insert(session, request, folder, id=jobs.new_id(), title=name, batch=None, key=None).id


def put(store: Store, id: str, state: State) -> None:
    """The job in that state, by whatever way."""
    with store.writing() as session:
        session.execute(text("UPDATE jobs SET state = :state WHERE id = :id"), {"state": state, "id": id})


def job(store: Store, id: str) -> Job:
    with store.reading() as session:
        return jobs.find(session, id)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "studio.db")


# --- versions ---------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_reads(store: Store):
    made = inspect(create_engine(f"sqlite:///{store.path}"))
    for table in Table.metadata.sorted_tables:
        found = {column["name"]: (str(column["type"]), column["nullable"]) for column in made.get_columns(table.name)}
        wanted = {c.name: (str(c.type.compile(made.dialect)), bool(c.nullable)) for c in table.columns}
        found["seq"], wanted["seq"] = ("INTEGER", False), ("INTEGER", False)  # SQLite calls its own key nullable
        assert found == wanted


def test_an_old_database_is_upgraded_in_place_after_a_copy_of_it(tmp_path: Path):
    path = tmp_path / "studio.db"
    before = add(Store(path))
    newer = Store(path, (*MIGRATIONS, ADDED))
    assert job(newer, before).title == "a"
    with newer.reading() as session:
        assert session.scalar(text("SELECT note FROM jobs")) == "none yet"
    (copy,) = tmp_path.glob("studio.db.format-*")
    assert copy.name == f"studio.db.format-{len(MIGRATIONS)}"
    with closing(sqlite3.connect(copy)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert old.execute("SELECT id FROM jobs").fetchall() == [(before,)]


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(tmp_path: Path):
    path = tmp_path / "studio.db"
    before = add(Store(path))
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        Store(path, (*MIGRATIONS, (*ADDED, "ALTER TABLE absent ADD COLUMN x")))
    assert job(Store(path), before).title == "a"
    with closing(sqlite3.connect(path)) as connection:
        assert "note" not in [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]


def test_a_database_of_a_newer_version_is_refused_in_words(tmp_path: Path):
    Store(tmp_path / "studio.db", (*MIGRATIONS, ADDED))
    with pytest.raises(MismatchError, match="newer version of Spectral Studio"):
        Store(tmp_path / "studio.db")


def test_opening_it_again_changes_nothing(tmp_path: Path):
    Store(tmp_path / "studio.db").close()
    before = (tmp_path / "studio.db").read_bytes()
    Store(tmp_path / "studio.db").close()
    assert (tmp_path / "studio.db").read_bytes() == before
    assert not list(tmp_path.glob("*.format-*"))


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path):
    (tmp_path / "studio.db").write_bytes(b"holiday pictures" * 100)
    with pytest.raises(FileFormatError, match="no database"):
        Store(tmp_path / "studio.db")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        Store(tmp_path / "file" / "studio.db")
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


# --- transactions -----------------------------------------------------------------------------------------


def test_the_database_is_in_wal_mode_and_waits_for_the_disk(store: Store):
    with store.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_an_error_undoes_the_whole_transaction(store: Store):
    with pytest.raises(ZeroDivisionError), store.writing() as session:
        jobs.insert(session, TrainRequest(config={"base": "x"}), Path("/a"), id="a", title="", batch=None, key=None)
        raise ZeroDivisionError
    with store.reading() as session:
        assert jobs.listed(session, (), None, None) == []


def test_a_reader_does_not_wait_for_a_writer(store: Store):
    id = add(store)
    with store.writing() as session:
        jobs.transition(session, id, "cancelled")
        assert job(store, id).state == "queued"
    assert job(store, id).state == "cancelled"


def test_a_database_that_stays_in_use_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    store = Store(tmp_path / "studio.db")
    with store.writing(), pytest.raises(StudioError, match="in use by another process"), store.writing():
        pass


def test_a_full_disk_is_called_so(store: Store):
    """SQLite's own limit on pages gives the very error that a full disk does."""
    with pytest.raises(DiskFullError, match="disk is full"), store.writing() as session:
        session.execute(text("PRAGMA max_page_count = 1"))
        session.execute(text("CREATE TABLE big AS SELECT zeroblob(1000000) AS x"))


def test_times_come_back_as_the_moments_they_were(store: Store):
    before = datetime.now(UTC)
    created = job(store, add(store)).created
    assert created.tzinfo is not None and abs(created - before) < timedelta(seconds=10)


# --- states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), product(STATES, STATES), ids=lambda state: str(state))
def test_a_job_goes_only_where_the_table_lets_it(store: Store, start: State, end: State):
    id = add(store)
    put(store, id, start)
    with store.writing() as session:
        moved = jobs.transition(session, id, end)
    assert moved == (end in TRANSITIONS[start])
    assert job(store, id).state == (end if moved else start)


def test_every_state_is_active_waiting_paused_or_over():
    assert sorted((*ACTIVE, *WAITING, *OVER, "paused")) == sorted(STATES) == sorted(TRANSITIONS)


def test_commands_that_act_at_once_are_transitions_of_the_table():
    moves = [(start, end) for answers in AT_ONCE.values() for start, end in answers.items()]
    assert moves and all(end in TRANSITIONS[start] for start, end in moves)
    assert not [start for start, _ in moves if start in ACTIVE]
    assert set(AT_ONCE) >= TOLD


def test_a_transition_of_another_attempt_is_refused(store: Store):
    id = add(store)
    put(store, id, "running")
    with store.writing() as session:
        assert not jobs.transition(session, id, "done", attempt=1)
        assert jobs.transition(session, id, "done", attempt=0)


def test_every_change_gets_a_greater_revision(store: Store):
    ids = [add(store, name) for name in "abc"]
    revisions = [job(store, id).revision for id in ids]
    with store.writing() as session:
        jobs.transition(session, ids[0], "cancelled")
    assert revisions == sorted(set(revisions))
    assert job(store, ids[0]).revision > max(revisions)


def test_what_is_over_knows_when_and_forgets_it_when_it_waits_again(store: Store):
    id = add(store)
    with store.writing() as session:
        jobs.transition(session, id, "cancelled")
    assert job(store, id).finished is not None
    with store.writing() as session:
        jobs.requeue(session, id)
    assert job(store, id).finished is None
