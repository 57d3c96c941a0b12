"""What workers survive: memory, NaN, full disks, signals, faults of the app and of the device."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from adapters.errors import DiskFullError
from studio import locks
from studio import worker as worker_module
from studio.claims import Claim
from studio.queue import Queue
from studio.stopping import Stop
from studio.store import State
from tests.jobs import check_files, fail_once, same, submit, watch, work, worker
from tests.support import make_pictures, quick_config, run
from trainers.config import TrainConfig
from trainers.events import Event, Started, Stepped


def test_too_little_memory_fails_the_job_in_a_sentence_and_not_the_next(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60)
    fail_once(monkeypatch, real.value)
    first, second = submit(queue, job_config), submit(queue, job_config)
    work(queue)
    failure = queue.get_job(first).failure
    assert failure is not None and failure.what == "The machine ran out of memory." and failure.remedy == "low-memory"
    assert f"studio jobs retry {first} --preset low-memory" in failure.fix
    assert queue.get_job(second).state == "done" and same(queue.get_job(second), job_reference)


def test_a_gpu_without_memory_is_called_so(queue: Queue, job_config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    fail_once(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    id = submit(queue, job_config)
    work(queue)
    failure = queue.get_job(id).failure
    assert failure is not None and (failure.what, failure.remedy) == ("The GPU ran out of memory.", "low-memory")


def test_a_loss_that_is_no_number_fails_the_job_in_a_sentence(queue: Queue, pictures: Path, job_config: TrainConfig):
    bad = quick_config(pictures, steps=30, optim={"name": "SGD", "learning_rate": 1e30, "max_grad_norm": 0})
    first, second = submit(queue, bad), submit(queue, job_config)
    work(queue)
    failure = queue.get_job(first).failure
    assert failure is not None and failure.code == 5 and "no longer a number" in failure.what
    assert queue.get_job(second).state == "done"


def test_a_fault_of_the_app_fails_the_job_alone_and_it_goes_on_from_its_checkpoint(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_once(monkeypatch, ZeroDivisionError("division by zero"))
    saving = job_config.model_copy(update={"save_every": 1})
    first, second = submit(queue, saving), submit(queue, job_config)
    work(queue)
    failure = queue.get_job(first).failure
    assert failure is not None and failure.code == 70 and queue.get_job(second).state == "done"
    queue.retry(first)
    work(queue)
    assert queue.get_job(first).state == "done" and queue.get_job(first).failure is None
    assert [e.step for e in queue.follow(first).events if isinstance(e, Started)] == [0, 2]
    assert same(queue.get_job(first), job_reference)


def test_a_disk_that_fills_up_fails_the_job_and_spoils_nothing(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    """ENOSPC where it hurts most: when the second checkpoint has been written and is to be made safe."""
    whole, calls = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(calls) >= 3:  # config.yaml's and the first checkpoint's, with their folders', have passed
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(handle)

    saving = job_config.model_copy(update={"save_every": 1})
    id = submit(queue, saving)
    with monkeypatch.context() as patch:
        patch.setattr("adapters.atomic.os.fsync", full)
        work(queue)
    job = queue.get_job(id)
    assert job.state == "failed" and job.failure is not None
    assert job.failure.code == 6 and "The disk is full" in job.failure.what
    check_files(job.run)
    assert not list(job.run.rglob("*.part"))
    queue.retry(id)
    work(queue)
    assert same(queue.get_job(id), job_reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full_is_told_and_the_job_ends_well_once_there_is_room(
    small_disk: Path, job_config: TrainConfig, job_reference: Path
):
    """Database, events and checkpoints all lie on it."""
    queue = Queue(small_disk / "home")
    id = submit(queue, job_config.model_copy(update={"save_every": 1}))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_600_000))
    work(queue)
    job = queue.get_job(id)
    assert job.state == "failed" and job.failure is not None and job.failure.code == 6
    assert "The disk is full" in job.failure.what
    check_files(job.run)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    queue.retry(id)
    work(queue)
    assert queue.get_job(id).state == "done" and same(queue.get_job(id), job_reference)
    queue.store.close()


def test_a_store_that_cannot_be_written_at_the_end_loses_no_job(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, failures = Claim.end, iter([DiskFullError("The disk is full.")])

    def end(self: Claim, state: State, failure: None = None) -> None:
        if (now := next(failures, None)) is not None:
            raise now
        whole(self, state, failure)

    monkeypatch.setattr(Claim, "end", end)
    monkeypatch.setattr(worker_module, "_AFTER_ERROR_SECONDS", 0.01)
    id = submit(queue, job_config)
    work(queue)
    assert queue.get_job(id).state == "done" and queue.get_job(id).attempts == 2
    assert same(queue.get_job(id), job_reference)


def test_a_device_that_answers_no_more_ends_the_process_and_not_the_queue(
    queue: Queue, job_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "answers", lambda device: False)
    ids = [submit(queue, job_config), submit(queue, job_config)]
    assert not worker(queue).serve()
    assert [queue.get_job(id).state for id in ids] == ["done", "queued"]


def test_a_signal_lets_the_step_end_and_the_job_waits_again(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    id, stop = submit(queue, job_config), Stop(patient=True)

    def see(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, stop.listening():
        watch(patch, see)
        assert worker(queue, stop=stop).serve()
    job = queue.get_job(id)
    assert (job.state, job.progress.saved_step, job.crashes) == ("interrupted", 3, 0)
    work(queue)
    assert same(queue.get_job(id), job_reference)


def test_a_second_signal_ends_at_once_and_the_job_still_waits(
    queue: Queue, job_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    id, stop = submit(queue, job_config), Stop(patient=True)

    def see(event: Event) -> None:
        if isinstance(event, Stepped):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with stop.listening(), pytest.raises(KeyboardInterrupt):
        watch(monkeypatch, see)
        worker(queue, stop=stop).serve()
    assert queue.get_job(id).state == "interrupted"
    assert not locks.is_held(locks.run_lock(queue.get_job(id).run))


def test_pictures_that_went_missing_fail_the_job_in_a_sentence(queue: Queue, tmp_path: Path):
    folder = make_pictures(tmp_path / "gone", count=1)
    id = submit(queue, quick_config(folder))
    (folder / "0.png").unlink()
    work(queue)
    failure = queue.get_job(id).failure
    assert failure is not None and failure.code in (2, 3) and str(folder) in failure.what


def test_a_job_does_not_write_over_a_run_that_came_into_its_folder(
    queue: Queue, job_config: TrainConfig, cache: Path, tmp_path: Path
):
    out = tmp_path / "out"
    id = submit(queue, job_config, out)
    run(job_config, out, cache)
    before = (out / "adapter.safetensors").read_bytes()
    work(queue)
    failure = queue.get_job(id).failure
    assert failure is not None and "finished run" in failure.what
    assert (out / "adapter.safetensors").read_bytes() == before
