"""Jobs as a person reads them in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from studio import workers
from studio.progress import display_for, duration, size, speed
from studio.queue import Queue
from studio.store import Job
from studio.store.states import ACTIVE, WAITING
from trainers.captions import filled

_POLL_SECONDS = 0.5
_JOB: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def progress(job: Job) -> str:
    """How far it is: "step 120/500 · 3 min 20 s left", "pictures 3/5"."""
    done = job.progress
    if job.state in ACTIVE and done.stage:
        return f"{done.stage} {done.stage_done}/{done.stage_total}" if done.stage_total else f"loading the {done.stage}"
    if not done.steps:
        return ""
    text = f"step {done.step}/{done.steps}"
    if job.state == "running" and done.seconds_per_step:
        text += f" · {duration(done.seconds_per_step * (done.steps - done.step))} left"
    return text


def table(jobs: list[Job]) -> Table:
    """A row a job."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "state", "what", "how", "base", "progress"):
        grid.add_column(name, overflow="fold")
    for job in jobs:
        detail = job.failure.what if job.failure is not None else progress(job)
        grid.add_row(*(escape(cell) for cell in (job.id, job.state, job.title, job.request.what, job.base, detail)))
    return grid


def prompts(config: Mapping[str, Any]) -> list[str]:
    """What the samples of a training's configuration show, with trigger and class filled in."""
    captions = config["data"]["captions"]
    texts = config["sample"]["prompts"] or [captions["template"]]
    return [filled(text, captions["trigger"], captions["class_word"]) for text in texts]


def as_json(job: Job) -> dict[str, Any]:
    """Everything the store knows of it, as plain values."""
    return _JOB.dump_python({name: getattr(job, name) for name in Job.__table__.columns.keys()}, mode="json")  # noqa: SIM118


def lines(job: Job) -> Iterator[str]:
    """What `studio jobs show` prints."""
    yield f"{job.id}: {job.title}, {job.state}"
    yield f"folder: {job.folder}"
    yield f"base: {job.base}, {job.kind}: {job.request.what}"
    if text := progress(job):
        yield f"progress: {text}"
    if job.progress.loss is not None:
        done = job.progress
        yield f"loss {done.loss:.4f} · {speed(done.seconds_per_step or 0)} · {size(done.memory_bytes or 0)}"
    for name in ("created", "started", "finished"):
        if (moment := getattr(job, name)) is not None:
            yield f"{name}: {local_time(moment)}"
    if job.attempts:
        yield f"attempts: {job.attempts}, the last on {job.worker}"
    if job.failure is not None:
        yield f"failed: {job.failure.what}"
        yield job.failure.fix


def local_time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def follow(queue: Queue, id: str, console: Console) -> Job:
    """Shows a job's events, past and coming, until it is over or paused; returns it as it then is."""
    offset, waiting_told = 0, False
    with display_for(console) as display:
        while True:
            queue.sweep()
            job = queue.get_job(id)  # before its events: what comes after is seen in the next round
            chunk = queue.follow(job.id, offset)
            offset = chunk.offset
            for event in chunk.events:
                display.show(event)
            if job.state not in (*ACTIVE, *WAITING):
                return job
            if job.state in WAITING and not waiting_told:
                nobody = "" if workers.alive(queue.home) else " None is alive: studio worker does the queue."
                console.print(f"Job {job.id} waits for a worker.{nobody}", markup=False, highlight=False)
                waiting_told = True
            time.sleep(_POLL_SECONDS)
