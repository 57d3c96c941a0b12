"""`studio worker`: one process a device that takes jobs from the queue, one after the other, and outlives them all."""

from __future__ import annotations

import time

import torch
from rich.console import Console

from adapters.errors import StudioError, UserInputError
from studio import claims
from studio.fuse_run import FuseRun
from studio.job_run import JobRun
from studio.queue import Queue
from studio.sample_run import SampleRun
from studio.stopping import Stop
from studio.store.states import WAITING
from studio.train_run import TrainRun
from studio.workers import FOREVER, Terms
from trainers.bases import BaseKeeper

_POLL_SECONDS = 1.0
_AFTER_ERROR_SECONDS = 10.0
_KEEP_BASE_SECONDS = 60.0
"""How long the base of the last job stays in memory while there is no other job."""

RUNS: dict[str, type[JobRun]] = {"train": TrainRun, "sample": SampleRun, "fuse": FuseRun}
"""Who does a job of which kind."""


class Worker:
    """Takes jobs until it is told to stop, or its terms end."""

    def __init__(
        self,
        queue: Queue,
        name: str,
        device: str,
        stop: Stop,
        console: Console,
        terms: Terms = FOREVER,
    ) -> None:
        self.queue, self.name, self.device, self.stop, self.console = queue, name, device, stop, console
        self.terms = terms
        self.keeper = BaseKeeper()

    def serve(self) -> bool:
        """Until a signal or the terms end it; False where the device answers this process no more."""
        last = time.monotonic()
        while not self.stop.asked:
            try:
                if self._turn():
                    if not answers(self.device):
                        return False
                    if self.terms.once:
                        return True
                    last = time.monotonic()
                    continue
                if self.queue.list_jobs(WAITING, limit=1):
                    last = time.monotonic()  # somebody trains in its folder by hand
            except StudioError as error:  # the store cannot be written: the disk is full, or has gone
                self.console.print(str(error), markup=False, highlight=False, soft_wrap=True)
                self.stop.wait(_AFTER_ERROR_SECONDS)
                last = time.monotonic()
                continue
            idle = time.monotonic() - last
            if self.terms.idle is not None and idle >= self.terms.idle:
                return True
            if idle >= _KEEP_BASE_SECONDS:
                self.keeper.drop()
            self.stop.wait(_POLL_SECONDS)
        return True

    def _turn(self) -> bool:
        """Looks after the dead, then does one job; whether there was one."""
        self.queue.sweep(self.terms.max_crashes)
        claims.requeue_interrupted(self.queue)
        claim = claims.claim_next(self.queue, self.name)
        if claim is None:
            return False
        went_well = False
        try:
            went_well = RUNS[claim.job.kind](claim, self.device, self.keeper, self.stop, self.console).run()
        finally:
            if not went_well:  # what a failed run has left of the base, nobody knows
                self.keeper.drop()
        return True


def answers(device: str) -> bool:
    """Whether the device still computes: after some faults CUDA refuses everything for as long as the process lives."""
    try:
        return torch.ones(1, device=device).add_(1).item() == 2
    except RuntimeError:
        return False


def torch_device(number: int) -> str:
    """torch's name of this machine's GPU of that number; the CPU is number 0 where there is none."""
    count = torch.cuda.device_count()
    if number >= max(1, count):
        raise UserInputError(
            f"There is no GPU {number} here.",
            f"This machine has {count}." if count else "It has none: leave --gpu out.",
        )
    return f"cuda:{number}" if count else "cpu"
