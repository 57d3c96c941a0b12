"""kill -9 of workers and their process groups at random moments: no job is lost, none is done twice at once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from studio.queue import Queue
from studio.store.states import ACTIVE, WAITING
from tests.jobs import check_files, check_steps, same, start, submit, work
from tests.support import quick_config, run
from trainers.config import TrainConfig

STEPS = 8


@pytest.fixture(scope="module")
def config(pictures: Path) -> TrainConfig:
    return quick_config(pictures, steps=STEPS, save_every=2)


@pytest.fixture(scope="module")
def reference(config: TrainConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    run(config, out, cache)
    return out / "adapter.safetensors"


def kills(queue: Queue, devices: list[str], longest: float, chance: random.Random) -> Iterator[list[str]]:
    """Kills one of the living workers after a random time, for ever; yields what states it has torn jobs out of."""
    living = {device: start(queue.home, device) for device in devices}
    try:
        while True:
            time.sleep(chance.uniform(0, longest / len(devices)))
            device = chance.choice(devices)
            if living[device].is_alive():
                kill_group(living[device])
                yield [job.state for job in queue.list_jobs(ACTIVE) if job.worker == device]
            living[device] = start(queue.home, device)
    finally:
        for process in living.values():
            process.kill()
            process.join()


def kill_group(process: BaseProcess) -> None:
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not come to make a group of its own
        process.kill()
    process.join()


def check(queue: Queue, ids: list[str], reference: Path) -> None:
    for id in ids:
        job = queue.get_job(id)
        assert job.state == "done"
        check_steps(queue.follow(id).events, STEPS)
        assert not list(job.run.rglob("*.part"))
        assert same(job, reference)
    with closing(sqlite3.connect(queue.store.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_worker_killed_three_times_ends_up_with_the_same_adapter(
    config: TrainConfig, reference: Path, tmp_path: Path
):
    queue = Queue(tmp_path)
    id = submit(queue, config)
    for _, _ in zip(range(3), kills(queue, ["device-0"], 4.0, random.Random(1)), strict=False):
        check_files(queue.get_job(id).run)
    work(queue)
    check(queue, [id], reference)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_workers_killed_a_hundred_times_lose_nothing(config: TrainConfig, reference: Path, tmp_path: Path):
    queue, ids, torn = Queue(tmp_path), [], Counter()
    for _, states in zip(range(100), kills(queue, ["device-0", "device-1"], 12.0, random.Random(2)), strict=False):
        torn.update(states)
        for id in ids:
            check_files(queue.get_job(id).run)
        while len(queue.list_jobs((*WAITING, *ACTIVE))) < 3:
            ids.append(submit(queue, config))
    work(queue)
    check(queue, ids, reference)
    assert torn["preparing"] > 5 and torn["running"] > 5
    print(f"{len(ids)} jobs; killed while {dict(torn)}; attempts {[queue.get_job(id).attempts for id in ids]}")
