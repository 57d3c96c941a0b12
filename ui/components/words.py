"""Jobs and times in plain words."""

from __future__ import annotations

from datetime import UTC, datetime

from studio.failures import Failure
from studio.progress import duration, size, speed
from studio.store import Job
from studio.store.states import ACTIVE, GIVEN_UP, State

STATES: dict[State, str] = {
    "queued": "waits its turn",
    "preparing": "is getting ready",
    "paused": "is paused",
    "done": "is ready",
    "failed": "did not work out",
    "cancelled": "was stopped",
    "interrupted": "was interrupted and goes on by itself",
}
_DOING = {"train": "is learning", "sample": "is drawing", "fuse": "is being combined"}
_COUNTED = {"pictures": "drawing", "scores": "scoring"}
"""What a job of pictures does picture by picture."""
_STAGES = {
    "base": "loading the base",
    "pictures": "reading the pictures",
    "captions": "reading the captions",
    "class pictures": "drawing pictures of the class",
    "samples": "drawing samples",
    "prompts": "looking at what each subject does",
    "fusion": "making one of them",
}


def state(job: Job) -> str:
    return _DOING[job.kind] if job.state == "running" else STATES[job.state]


def failure(job: Job) -> Failure | None:
    """Why it was given up, if it was and that is known."""
    return job.failure if job.state in GIVEN_UP else None


def stage(job: Job) -> str:
    """What it is at now, in words: "loading the base", "step 12 of 300", "drawing 3 of 8"."""
    done = job.progress
    if job.state not in ACTIVE:
        return STATES[job.state]
    if doing := _counted(job):
        return f"{doing} {min(done.stage_done + 1, done.stage_total)} of {done.stage_total}"
    if done.stage:
        counted = f" ({done.stage_done} of {done.stage_total})" if done.stage_total else ""
        return _STAGES.get(done.stage, done.stage) + counted
    return f"step {done.step} of {done.steps}" if done.steps else state(job)


def _counted(job: Job) -> str:
    """What it does to each of the pictures that it was asked for now, or ""."""
    done = job.progress
    return _COUNTED.get(done.stage, "") if job.kind == "sample" and done.stage_total > 0 else ""


def share(job: Job) -> float | None:
    """How far its steps, or its pictures, are, 0 to 1; None where they have not begun."""
    done = job.progress
    if job.state == "done":
        return 1.0
    if _counted(job):
        return done.stage_done / done.stage_total
    return done.step / done.steps if done.steps else None


def left(job: Job) -> str:
    """Time left while it steps, or ""."""
    done = job.progress
    if job.state != "running" or not done.seconds_per_step or done.step >= done.steps:
        return ""
    return f"{duration(done.seconds_per_step * (done.steps - done.step))} left"


def figures(job: Job) -> list[tuple[str, str]]:
    """Names and values of what can be measured so far."""
    done = job.progress
    found = [
        ("Loss", f"{done.loss:.4f}" if done.loss is not None else ""),
        ("Speed", speed(done.seconds_per_step) if done.seconds_per_step else ""),
        ("Memory", size(done.memory_bytes) if done.memory_bytes else ""),
        ("Saved at", f"step {done.saved_step}" if done.saved_step else ""),
    ]
    return [(name, value) for name, value in found if value]


def ago(moment: datetime | None) -> str:
    """ "just now", "5 min ago", "yesterday"."""
    if moment is None:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for limit, unit, text in ((90, 1, "just now"), (5400, 60, "{} min ago"), (129600, 3600, "{} h ago")):
        if seconds < limit:
            return text.format(round(seconds / unit))
    return f"{round(seconds / 86400)} days ago"
