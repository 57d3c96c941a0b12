"""The queue of jobs, as the command line, the web server and the workers see it. Imports no torch.

    queue = Queue()
    job = queue.submit(submission)          # studio.submitting makes and validates one
    workers.ensure(queue)                   # somebody to do it
    queue.send(job, "pause")
    chunk = queue.follow(job, offset)       # its events from there on

A `Queue` is opened once a process and may be used by any of its threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from adapters.errors import UserInputError
from studio import event_log, locks
from studio.event_log import Chunk
from studio.failures import Failure
from studio.paths import data_dir, state_dir
from studio.store import Ask, Job, JobRequest, State, Store, jobs
from studio.store.states import ACTIVE, AT_ONCE, GIVEN_UP, TOLD, WAITING

MAX_CRASHES = 3
"""Workers that may die over a job, without a checkpoint in between, before it is given up."""
_REFUSALS = {
    "cancel": "There is nothing to cancel.",
    "pause": "There is nothing to pause.",
    "resume": "Only a paused job is resumed; studio jobs retry does a failed or cancelled one again.",
    "save": "Only a running job can save.",
    "sample": "Only a running job can draw samples.",
}


class Submission(BaseModel):
    """What `submit` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    request: JobRequest
    """What to do (studio.submitting.submission makes and checks a training)."""
    title: str
    """What people call it."""
    folder: Path | None = None
    """The run's folder; left out: one of the queue's own, named by the job's id."""
    batch: str | None = None
    key: str | None = None
    """The client's name for this submission: submitted twice, it is one job."""


class Queue:
    """The jobs of one data folder: `home`/studio.db, `home`/runs, `home`/workers."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or data_dir()
        self.store = Store(self.home / "studio.db")

    # --- looking ------------------------------------------------------------------------------------------

    def list_jobs(
        self,
        states: Sequence[State] = (),
        *,
        batch: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """What is not over in the order of the queue, then what is, the last one first."""
        with self.store.reading() as session:
            return jobs.listed(session, states, batch, limit, kind)

    def get_job(self, id: str) -> Job:
        """The job of that id, or of the only one that begins so; MissingError where there is none."""
        with self.store.reading() as session:
            return jobs.find(session, id)

    def revision(self) -> int:
        """Grows whenever any job changes, is told something or obeys: while it is the same, nothing has moved."""
        with self.store.reading() as session:
            return jobs.newest_revision(session)

    def asked(self, id: str) -> list[Ask]:
        """What the job's worker was told and has not done yet, the oldest first."""
        with self.store.reading() as session:
            return jobs.asked(session, id)

    def follow(self, id: str, offset: int = 0) -> Chunk:
        """The job's events from that byte of its events.jsonl on, and the offset to go on from."""
        return event_log.read(self.get_job(id).run / "events.jsonl", offset)

    # --- asking -------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> str:
        """The id of a new job at the queue's end, or of the one that the same key has made before."""
        with self.store.writing() as session:
            if submission.key is not None and (known := jobs.by_key(session, submission.key)):
                return known.id
            id = jobs.new_id()
            folder = (submission.folder or self.home / "runs" / id).absolute()
            job = jobs.insert(
                session,
                submission.request,
                folder,
                id=id,
                title=submission.title,
                batch=submission.batch,
                key=submission.key,
            )
            return job.id

    def send(self, id: str, ask: Ask) -> Job:
        """A command: done at once where nobody works at the job, else put down for its worker, which looks each step.

        Returns the job as it then is. UserInputError where it means nothing in the job's state.
        """
        with self.store.writing() as session:
            job = jobs.find(session, id)
            target = AT_ONCE[ask].get(job.state)
            if target is not None:
                jobs.transition(session, job.id, target)
            elif job.state in ACTIVE and ask in TOLD:
                jobs.tell(session, job.id, ask)
            else:
                raise UserInputError(f"Job {job.id} is {job.state}.", _REFUSALS[ask])
            session.refresh(job)
            return job

    def retry(self, id: str) -> Job:
        """A failed or cancelled job waits again, and goes on from its last checkpoint."""
        with self.store.writing() as session:
            job = jobs.find(session, id)
            if job.state not in GIVEN_UP:
                raise UserInputError(f"Job {job.id} is {job.state}.", "Only failed and cancelled jobs are tried again.")
            jobs.requeue(session, job.id)
            session.refresh(job)
            return job

    def reorder(self, id: str, place: int) -> list[Job]:
        """Moves a waiting job to that place, 1 being the next; returns the waiting jobs in their new order."""
        with self.store.writing() as session:
            job = jobs.find(session, id)
            if job.state not in WAITING:
                raise UserInputError(f"Job {job.id} is {job.state}.", "Only waiting jobs have a place in the queue.")
            jobs.place(session, job.id, place)
            session.expire_all()
            return jobs.waiting(session)

    # --- the dead -----------------------------------------------------------------------------------------

    def sweep(self, max_crashes: int = MAX_CRASHES) -> list[str]:
        """Ids of jobs whose worker has died, by their locks: interrupted now, or what they had been told to be."""
        return [job.id for job in self.list_jobs(ACTIVE) if self._bury(job, max_crashes)]

    def _bury(self, job: Job, max_crashes: int) -> bool:
        try:
            lock = locks.hold(locks.run_lock(job.run))
        except OSError:  # its disk is away: nothing can be said of it until it is back
            return False
        if lock is None:
            return False
        try:  # under the lock nobody can begin with it
            with self.store.writing() as session:
                return _after_death(session, job, max_crashes)
        finally:
            lock.release()


def _after_death(session: Session, job: Job, max_crashes: int) -> bool:
    asked, crashes = jobs.asked(session, job.id), job.crashes + 1
    if "cancel" in asked:
        return jobs.transition(session, job.id, "cancelled", attempt=job.attempts, crashes=crashes)
    if "pause" in asked:
        return jobs.transition(session, job.id, "paused", attempt=job.attempts, crashes=crashes)
    if crashes >= max_crashes:
        return jobs.transition(
            session, job.id, "failed", attempt=job.attempts, crashes=crashes, failure=_killer(job.id, crashes)
        )
    return jobs.transition(session, job.id, "interrupted", attempt=job.attempts, crashes=crashes)


def _killer(id: str, crashes: int) -> Failure:
    return Failure(
        f"Its worker died {crashes} times without a checkpoint in between; most likely the machine ran out of memory.",
        f"Try less memory: studio jobs retry {id} --preset low-memory. Logs: {state_dir() / 'logs'}.",
        1,
        remedy="low-memory",
    )
