"""How the database came to be as it is: one entry a version, never changed once it was released.

An entry is a list of statements that run in one transaction. They add tables and columns and take none away, since a
worker of the version before may still be at work on the same file.
"""

from __future__ import annotations

Migration = tuple[str, ...]

_JOBS = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id VARCHAR NOT NULL UNIQUE,
    key VARCHAR UNIQUE,
    kind VARCHAR NOT NULL,
    title VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    request JSON NOT NULL,
    folder VARCHAR NOT NULL,
    base VARCHAR NOT NULL,
    batch VARCHAR,
    created VARCHAR NOT NULL,
    started VARCHAR,
    finished VARCHAR,
    attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    worker VARCHAR,
    failure JSON,
    progress JSON NOT NULL
)
"""
_COMMANDS = """
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job VARCHAR NOT NULL REFERENCES jobs (id),
    name VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    taken VARCHAR
)
"""
_ADAPTERS = """
CREATE TABLE adapters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id VARCHAR NOT NULL UNIQUE,
    name VARCHAR NOT NULL,
    "trigger" VARCHAR NOT NULL,
    class_word VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    base VARCHAR NOT NULL,
    base_hash VARCHAR NOT NULL,
    file VARCHAR NOT NULL,
    job VARCHAR REFERENCES jobs (id),
    parents JSON NOT NULL,
    tags JSON NOT NULL,
    thumbnail VARCHAR,
    created VARCHAR NOT NULL,
    trashed_at VARCHAR
)
"""
_FOUND_BY = """
UPDATE adapters SET words = lower(name || ' ' || "trigger" || ' ' || class_word || ' ' || method || ' ' || base)
"""

_EVENTS = ("insert", "update", "delete")
_COUNT = "BEGIN UPDATE library_changes SET number = number + 1; END"

MIGRATIONS: tuple[Migration, ...] = (
    (
        _JOBS,
        "CREATE INDEX jobs_by_state ON jobs (state, position)",
        "CREATE INDEX jobs_by_revision ON jobs (revision)",
        _COMMANDS,
        "CREATE INDEX commands_by_job ON commands (job) WHERE taken IS NULL",
        _ADAPTERS,
    ),
    ("ALTER TABLE adapters ADD COLUMN words VARCHAR NOT NULL DEFAULT ''", _FOUND_BY),
    (
        "CREATE TABLE library_changes (number INTEGER NOT NULL)",
        "INSERT INTO library_changes VALUES (0)",
        *(f"CREATE TRIGGER adapters_{event} AFTER {event} ON adapters {_COUNT}" for event in _EVENTS),
    ),
)
