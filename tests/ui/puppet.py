"""A worker that does nothing but what a test says: phases last as long as they are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studio import locks, workers
from studio.claims import Claim, claim_next
from studio.queue import Queue
from studio.store import Job, Summary
from studio.store.states import ACTIVE, WAITING
from studio.submitting import checked
from tests.support import make_pictures, quick_config
from trainers.events import Event, Started, Stepped

STEPS = 40


class Puppet:
    """Holds the lock of the only device, so that the server starts no worker beside it."""

    def __init__(self, home: Path) -> None:
        self.queue = Queue(home)
        self.pictures = make_pictures(home / "pictures" / "puppet", 2)
        lock = locks.hold(workers.lock_path(home, workers.device_name(0)), 5.0)
        assert lock is not None
        self.lock = lock
        self.claims: list[Claim] = []

    def rest(self) -> None:
        """Ends whatever is not over."""
        for claim in self.claims:
            claim.lock.release()
        self.claims.clear()
        self.queue.sweep()
        for job in self.queue.list_jobs((*WAITING, "paused")):
            self.queue.send(job.id, "cancel")

    def close(self) -> None:
        """Gives its device back."""
        self.rest()
        self.lock.release()

    def submit(self, title: str, **changes: Any) -> str:
        config = quick_config(self.pictures, steps=STEPS, **changes)
        return self.queue.submit(checked(config).model_copy(update={"title": title}))

    def claim(self) -> Claim:
        claim = claim_next(self.queue, "device-0")
        assert claim is not None
        self.claims.append(claim)
        return claim

    def prepare(self, title: str) -> Claim:
        self.submit(title)
        claim = self.claim()
        claim.report(Summary(stage="pictures", stage_done=1, stage_total=2))
        return claim

    def step(self, title: str, step: int = 3) -> Claim:
        claim = self.prepare(title)
        claim.begin()
        claim.report(Summary(step=step, steps=STEPS, loss=0.1234, seconds_per_step=0.5, memory_bytes=2**30))
        write(claim.job, [started(STEPS), *(stepped(number, STEPS) for number in range(1, step + 1))])
        return claim

    def draw(self, title: str) -> Claim:
        claim = self.step(title)
        claim.report(Summary(stage="samples", stage_done=1, stage_total=4, step=3, steps=STEPS, seconds_per_step=0.5))
        return claim

    def die(self, claim: Claim) -> None:
        """As kill -9 does it: the kernel takes the lock back, and nobody says a word."""
        claim.lock.release()

    def bury(self, claim: Claim) -> None:
        """It dies, and that is found, by us or by the server."""
        self.die(claim)
        while self.queue.get_job(claim.job.id).state in ACTIVE:
            self.queue.sweep()


def write(job: Job, events: Iterable[Event]) -> None:
    """Appends to the job's log."""
    job.run.mkdir(parents=True, exist_ok=True)
    with (job.run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(event.model_dump_json() + "\n" for event in events)


def started(steps: int) -> Started:
    return Started(
        step=0, steps=steps, trainable_parameters=1, pictures=2, base="embedded", device="cpu", precision="float32"
    )


def stepped(step: int, steps: int) -> Stepped:
    return Stepped(
        step=step, steps=steps, loss=0.2 / step**0.3, learning_rate=1e-4, grad_norm=1.0, seconds_per_step=0.5,
        memory_bytes=2**30,
    )  # fmt: skip
