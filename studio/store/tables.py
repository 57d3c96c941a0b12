"""The tables, as they are after the last migration. Times are UTC, and nothing is ordered by them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter
from sqlalchemy import JSON, Dialect, ForeignKey, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from studio.failures import Failure
from studio.store.requests import JobRequest, TrainRequest
from studio.store.states import Ask, State


class Summary(BaseModel):
    """How far a job is: what a list or a status strip shows without reading its events."""

    model_config = ConfigDict(frozen=True)
    stage: str = ""
    """What is being done besides steps, such as "pictures" or "samples"; "" while it steps."""
    stage_done: int = 0
    stage_total: int = 0
    step: int = 0
    steps: int = 0
    saved_step: int = 0
    """Step of the newest checkpoint: what a crash would not lose."""
    loss: float | None = None
    """Moving average."""
    seconds_per_step: float | None = None
    memory_bytes: int | None = None
    sample: str | None = None
    """Newest sample picture, relative to the run's folder."""


class _Utc(TypeDecorator[datetime]):
    """An aware datetime as an ISO 8601 text in UTC."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat(timespec="milliseconds")

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


class _Typed(TypeDecorator[Any]):
    """A pydantic model or a dataclass as JSON."""

    impl = JSON
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__(none_as_null=True)
        self.kind = TypeAdapter[Any](kind)

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> Any:
        return None if value is None else self.kind.dump_python(value, mode="json")

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any:
        return None if value is None else self.kind.validate_python(value)


class Table(MappedAsDataclass, DeclarativeBase):
    """Rows are dataclasses; those that a session has given out stay readable after it."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own declaration)
        datetime: _Utc,
        list[str]: JSON,
        State: String,
        Ask: String,
        Summary: _Typed(Summary),
        Failure: _Typed(Failure),
    }


class Job(Table, kw_only=True):
    """One thing that a worker is to do, or did."""

    __tablename__ = "jobs"
    seq: Mapped[int] = mapped_column(init=False, primary_key=True)
    """The order of submission, whatever the clock says."""
    id: Mapped[str] = mapped_column(unique=True)
    key: Mapped[str | None] = mapped_column(default=None, unique=True)
    """The client's own name for the submission: the same key again gives the same job."""
    kind: Mapped[str] = mapped_column(default="train")
    title: Mapped[str]
    state: Mapped[State] = mapped_column(default="queued")
    position: Mapped[int]
    """Waiting jobs are taken by ascending position."""
    revision: Mapped[int]
    """Grows with every change of any job: what changed last, whatever the clock says."""
    request: Mapped[JobRequest] = mapped_column(_Typed(JobRequest))
    folder: Mapped[str]
    base: Mapped[str]
    batch: Mapped[str | None] = mapped_column(default=None)
    created: Mapped[datetime]
    started: Mapped[datetime | None] = mapped_column(default=None)
    finished: Mapped[datetime | None] = mapped_column(default=None)
    attempts: Mapped[int] = mapped_column(default=0)
    """How often a worker took it. The number of the present attempt is the worker's claim on it."""
    crashes: Mapped[int] = mapped_column(default=0)
    """Workers that died over it since it last saved a checkpoint."""
    worker: Mapped[str | None] = mapped_column(default=None)
    """The device whose worker is at it, or was last."""
    failure: Mapped[Failure | None] = mapped_column(default=None)
    progress: Mapped[Summary] = mapped_column(default_factory=Summary)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """A training's configuration; empty for what trains nothing."""
        return self.request.config if isinstance(self.request, TrainRequest) else {}


class Command(Table, kw_only=True):
    """Something that a running job is asked to do."""

    __tablename__ = "commands"
    seq: Mapped[int] = mapped_column(init=False, primary_key=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[Ask]
    created: Mapped[datetime]
    taken: Mapped[datetime | None] = mapped_column(default=None)
    """When it was obeyed, or came to nothing because the job had ended."""


class LibraryAdapter(Table, kw_only=True):
    """An adapter file of the library. No text in it is ever part of a path but `file` and `thumbnail`."""

    __tablename__ = "adapters"
    seq: Mapped[int] = mapped_column(init=False, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    """The sha256 of the file: the same bytes are one entry, and a fused file names its parents so."""
    name: Mapped[str]
    trigger: Mapped[str]
    class_word: Mapped[str]
    method: Mapped[str]
    base: Mapped[str]
    base_hash: Mapped[str]
    file: Mapped[str]
    """Relative to the library's folder, made of the id alone."""
    job: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), default=None)
    parents: Mapped[list[str]] = mapped_column(default_factory=list)
    """Ids of the adapters that a fused one was made of, in the library or not."""
    tags: Mapped[list[str]] = mapped_column(default_factory=list)
    thumbnail: Mapped[str | None] = mapped_column(default=None)
    """Relative to the library's folder."""
    created: Mapped[datetime]
    trashed_at: Mapped[datetime | None] = mapped_column(default=None)
    words: Mapped[str] = mapped_column(default="")
    """What it is found by (store.adapters.index)."""
