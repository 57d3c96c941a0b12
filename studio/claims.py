"""A worker's side of the queue: taking a job, telling how far it is, hearing what it is asked, ending it.

The lock of the run's folder comes first and goes last: whoever holds it is the only one who may move the job. Every
write names the attempt besides, so that a worker whose folder was taken from under it can do no harm.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from filelock import BaseFileLock

from adapters.errors import StudioError
from studio import locks
from studio.failures import Failure, explain
from studio.queue import Queue
from studio.store import Ask, Job, State, Summary, jobs


class Lost(Exception):
    """The job is no longer this worker's."""


@dataclass
class Claim:
    """A job in this process's hands."""

    queue: Queue
    job: Job
    lock: BaseFileLock

    def begin(self) -> None:
        """Preparing → running."""
        self._move("running", started=self.job.started or jobs.now())

    def report(self, summary: Summary, *, saved: bool = False) -> None:
        """How far it is; `saved`: a new checkpoint makes up for past crashes. Not worth failing for: skipped then."""
        values: dict[str, Any] = {"progress": summary} | ({"crashes": 0} if saved else {})
        with suppress(StudioError), self.queue.store.writing() as session:
            if not jobs.change(session, self.job.id, attempt=self.job.attempts, **values):
                raise Lost

    def asked(self) -> list[Ask]:
        """What it was told and has not obeyed, the oldest first."""
        with self.queue.store.reading() as session:
            return jobs.asked(session, self.job.id)

    def obeyed(self, ask: Ask) -> None:
        with self.queue.store.writing() as session:
            jobs.settle(session, self.job.id, ask)
            jobs.change(session, self.job.id)

    def end(self, state: State, failure: Failure | None = None) -> None:
        """The last word about this attempt."""
        self._move(state, failure=failure)

    def _move(self, state: State, **values: object) -> None:
        with self.queue.store.writing() as session:
            if not jobs.transition(session, self.job.id, state, attempt=self.job.attempts, **values):
                raise Lost


def claim_next(queue: Queue, device: str) -> Claim | None:
    """The first waiting job that nobody else has, now preparing; None where there is none."""
    after = 0
    while True:
        with queue.store.reading() as session:
            job = jobs.first_waiting(session, after)
        if job is None:
            return None
        after = job.position
        try:
            lock = locks.hold(locks.run_lock(job.run))
        except OSError as error:
            _refuse(queue, job, explain(error))
            continue
        if lock is not None and (taken := _take(queue, job, device)):
            return Claim(queue, taken, lock)
        if lock is not None:
            lock.release()


def _take(queue: Queue, job: Job, device: str) -> Job | None:
    with queue.store.writing() as session:
        mine = jobs.transition(
            session, job.id, "preparing", attempt=job.attempts, attempts=job.attempts + 1, worker=device
        )
        if not mine:
            return None
        session.expire_all()
        return jobs.find(session, job.id)


def _refuse(queue: Queue, job: Job, failure: Failure) -> None:
    """Its folder cannot be made."""
    with queue.store.writing() as session:
        if jobs.transition(session, job.id, "preparing", attempt=job.attempts):
            jobs.transition(session, job.id, "failed", failure=failure)


def requeue_interrupted(queue: Queue) -> None:
    """What was interrupted waits again, in its old place."""
    for job in queue.list_jobs(("interrupted",)):
        with queue.store.writing() as session:
            jobs.transition(session, job.id, "queued", attempt=job.attempts)
