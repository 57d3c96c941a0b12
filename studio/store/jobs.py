"""What is done to rows of jobs and commands, each within the caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from sqlalchemy import CursorResult, case, func, select, update
from sqlalchemy.orm import Session

from adapters.errors import MissingError, UserInputError
from studio.store.requests import JobRequest
from studio.store.states import ACTIVE, OVER, STATES, WAITING, Ask, State, sources
from studio.store.tables import Command, Job

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without letters and digits that are taken for each other."""
_ID_LENGTH = 10


def now() -> datetime:
    """For people to read; nothing is decided by it."""
    return datetime.now(UTC)


def new_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def newest_revision(session: Session) -> int:
    return session.scalar(select(func.max(Job.revision))) or 0


def insert(
    session: Session, request: JobRequest, folder: Path, *, id: str, title: str, batch: str | None, key: str | None
) -> Job:
    """A queued job at the end of the queue; UserInputError where another one is to write into its folder."""
    taken = session.scalar(select(Job.id).where(Job.folder == str(folder), Job.state.not_in(OVER)))
    if taken is not None:
        raise UserInputError(f"{folder} is the folder of job {taken}.", "Choose another folder with --out.")
    job = Job(
        id=id,
        key=key,
        kind=request.kind,
        title=title,
        position=_end(session),
        revision=newest_revision(session) + 1,
        request=request,
        folder=str(folder),
        base=request.base,
        batch=batch,
        created=now(),
    )
    session.add(job)
    session.flush()
    return job


def _end(session: Session) -> int:
    return (session.scalar(select(func.max(Job.position))) or 0) + 1


def by_key(session: Session, key: str) -> Job | None:
    return session.scalar(select(Job).where(Job.key == key))


def find(session: Session, id: str) -> Job:
    """The job of that id, or of the only id that begins so; MissingError where there is none."""
    found = session.scalars(select(Job).where(Job.id.startswith(id, autoescape=True)).limit(2)).all() if id else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserInputError(f"Several jobs' ids begin with {id}.", "Write more of it.")
    raise MissingError(f"There is no job {id!r}.", "studio jobs list tells their ids.")


def listed(
    session: Session, states: Sequence[State], batch: str | None, limit: int | None, kind: str | None = None
) -> list[Job]:
    """What is not over by place in the queue, then what is, the last one first."""
    over = Job.state.in_(OVER)
    query = select(Job).where(Job.state.in_(states or STATES))
    if batch is not None:
        query = query.where(Job.batch == batch)
    if kind is not None:
        query = query.where(Job.kind == kind)
    order = case((over, -Job.revision), else_=Job.position)
    return list(session.scalars(query.order_by(case((over, 1), else_=0), order).limit(limit)))


def change(
    session: Session, id: str, *, among: Sequence[State] = STATES, attempt: int | None = None, **values: Any
) -> bool:
    """One UPDATE of a job that is in one of these states, and in its `attempt` where that is given; whether it was."""
    query = update(Job).where(Job.id == id, Job.state.in_(among))
    if attempt is not None:
        query = query.where(Job.attempts == attempt)
    revision = select(func.max(Job.revision) + 1).scalar_subquery()
    result = session.execute(query.values(**values, revision=revision).execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", result).rowcount == 1


def transition(session: Session, id: str, target: State, *, attempt: int | None = None, **values: Any) -> bool:
    """Moves a job to `target` if it may go there from where it is; whether it did."""
    if target in OVER:
        values.setdefault("finished", now())
    moved = change(session, id, among=sources(target), attempt=attempt, state=target, **values)
    if moved and target not in ACTIVE:
        settle(session, id)
    return moved


def requeue(session: Session, id: str) -> None:
    """A job that was given up waits again, at the end of the queue, with its past failures forgotten."""
    transition(session, id, "queued", position=_end(session), failure=None, finished=None, crashes=0)


def first_waiting(session: Session, after: int) -> Job | None:
    """The first queued job whose position is greater than `after`."""
    query = select(Job).where(Job.state == "queued", Job.position > after).order_by(Job.position)
    return session.scalar(query.limit(1))


def waiting(session: Session) -> list[Job]:
    return list(session.scalars(select(Job).where(Job.state.in_(WAITING)).order_by(Job.position)))


def place(session: Session, id: str, place: int) -> None:
    """Moves a waiting job to that place in the queue, 1 being the next; the others keep their order."""
    jobs = waiting(session)
    positions = [job.position for job in jobs]
    moved = next(job for job in jobs if job.id == id)
    jobs.remove(moved)
    jobs.insert(max(0, place - 1), moved)
    for job, position in zip(jobs, positions, strict=True):
        if job.position != position:
            change(session, job.id, position=position)


# --- commands ---------------------------------------------------------------------------------------------


def tell(session: Session, id: str, ask: Ask) -> None:
    """Puts a command down for the job's worker; once is enough while it has not been obeyed."""
    if ask not in asked(session, id):
        session.add(Command(job=id, name=ask, created=now()))
        change(session, id)


def asked(session: Session, id: str) -> list[Ask]:
    """Commands that have not been obeyed, the oldest first."""
    query = select(Command.name).where(Command.job == id, Command.taken.is_(None)).order_by(Command.seq)
    return list(session.scalars(query))


def settle(session: Session, id: str, ask: Ask | None = None) -> None:
    """Marks commands as taken: those of that name, or all."""
    query = update(Command).where(Command.job == id, Command.taken.is_(None))
    if ask is not None:
        query = query.where(Command.name == ask)
    session.execute(query.values(taken=now()).execution_options(synchronize_session=False))
