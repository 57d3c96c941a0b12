"""A batch on this machine: its runs are jobs of the queue, a worker a GPU does them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from adapters.errors import UserInputError
from studio import job_texts, workers
from studio.batch.plan import Plan, PlannedRun
from studio.batch.record import BatchRecord, RunStatus, read_record, read_status, write_record
from studio.batch.storage import Storage
from studio.paths import slug
from studio.queue import Queue
from studio.store import Job
from studio.store.states import ACTIVE, GIVEN_UP, WAITING
from studio.submitting import checked

_POLL_SECONDS = 1.0
Say = Callable[[str], None]


def batch_id(plan: Plan, out: str | None) -> str:
    """The same file and folder are the same batch: run again, it goes on with what is missing."""
    place = hashlib.sha256(f"{plan.source}\n{out or ''}".encode()).hexdigest()[:6]
    return f"{slug(plan.name, 30)}-{place}"


def open_storage(queue: Queue, plan: Plan, out: str | None) -> tuple[str, Storage]:
    """The batch's id and its folder on this disk; UserInputError where `out` is somewhere else."""
    place = None if out is None else Storage(out)
    if place is not None and not place.local:
        raise UserInputError(f"The queue's runs lie on this machine, not in {out}.", "Give a folder, or use --ray.")
    id = batch_id(plan, place.url if place else None)
    return id, place or Storage(str(queue.home / "batches" / id))


def find(queue: Queue, which: str) -> tuple[Storage, BatchRecord]:
    """A batch by its id, by the beginning of it, or by its folder; MissingError where there is none."""
    by_id = [storage for id, storage in _known(queue) if id.startswith(which)]
    if len(by_id) > 1:
        raise UserInputError(f"Several batches' ids begin with {which}.", "Write more of it.")
    storage = by_id[0] if by_id else Storage(which)
    return storage, read_record(storage)


def _known(queue: Queue) -> list[tuple[str, Storage]]:
    """The batches that have jobs in the queue: a job's folder is <batch's folder>/runs/<run>."""
    folders = {job.batch: job.run.parents[1] for job in queue.list_jobs() if job.batch is not None}
    return [(id, Storage(str(folder))) for id, folder in folders.items()]


def all_statuses(queue: Queue, storage: Storage, record: BatchRecord) -> dict[str, RunStatus]:
    """What a cluster has put down of each run, or the queue knows."""
    queue.sweep()
    put_down = {run.digest: status for run in record.runs if (status := read_status(storage, run)) is not None}
    return put_down | statuses(queue, record)


def start(plan: Plan, queue: Queue, id: str, storage: Storage) -> BatchRecord:
    """Queues what is missing: runs that are new, those that have failed or were cancelled, those that are paused."""
    record = write_record(storage, plan, id)
    known = {job.key: job for job in queue.list_jobs(batch=id)}
    for run in sorted(plan.runs, key=_base_of):
        job = known.get(f"{id}/{run.digest}")
        if job is None:
            _submit(queue, id, run, Path(storage.path(f"runs/{run.name}")))
        elif job.state in GIVEN_UP:
            queue.retry(job.id)
        elif job.state == "paused":
            queue.send(job.id, "resume")
    return record


def _base_of(run: PlannedRun) -> tuple[object, ...]:
    """Runs of one base come one after the other, so that a worker loads it once."""
    whole = run.config
    return (whole.base, whole.precision, whole.quantization, whole.targets.text_encoders_train, whole.vae_tiling)


def _submit(queue: Queue, id: str, run: PlannedRun, folder: Path) -> None:
    submission = checked(run.config, folder, batch=id, key=f"{id}/{run.digest}")
    queue.submit(submission.model_copy(update={"title": run.label}))


def jobs_of(queue: Queue, record: BatchRecord) -> list[Job]:
    """The jobs of the runs that the batch has now, in its order."""
    known = {job.key: job for job in queue.list_jobs(batch=record.id)}
    return [job for run in record.runs if (job := known.get(f"{record.id}/{run.digest}")) is not None]


def statuses(queue: Queue, record: BatchRecord) -> dict[str, RunStatus]:
    """How the queue's jobs are, by the digest of their run."""
    return {
        str(job.key).rpartition("/")[2]: RunStatus(
            state=job.state, failure=job.failure, attempts=job.attempts, worker=job.worker, job=job.id
        )
        for job in jobs_of(queue, record)
    }


def follow(queue: Queue, record: BatchRecord, say: Say, *, start_worker: bool = True) -> None:
    """Tells how the jobs go until each is over or paused; starts workers where some have ended."""
    told: dict[str, str] = {}
    revision = -1
    while True:
        queue.sweep()
        if (now := queue.revision()) != revision:
            revision, jobs = now, jobs_of(queue, record)
            _tell_changes(jobs, told, say)
            if not any(job.state in (*ACTIVE, *WAITING) for job in jobs):
                return
        if start_worker and not workers.alive(queue.home):
            workers.ensure(queue)
        time.sleep(_POLL_SECONDS)


def _tell_changes(jobs: list[Job], told: dict[str, str], say: Say) -> None:
    counts = Counter(job.state for job in jobs)
    for job in jobs:
        if told.get(job.id, "queued") != job.state:
            detail = job.failure.what if job.failure is not None else job_texts.progress(job)
            over = len(jobs) - sum(counts[state] for state in (*ACTIVE, *WAITING))
            say(f"[{over}/{len(jobs)}] {job.title}: {job.state}" + (f" ({detail})" if detail else ""))
        told[job.id] = job.state
