"""Workers on the embedded base: what they make, obey and survive."""

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
from studio.config import compose, file_layer
from studio.queue import Queue
from studio.stopping import Stop
from studio.store import State
from studio.submitting import again
from studio.workers import Terms
from tests.jobs import check_files, check_steps, same, submit, watch, work, worker
from tests.support import make_pictures, quick_config, run
from trainers import bases
from trainers.config import TrainConfig
from trainers.engine import Engine, StepResult
from trainers.events import Event, Note, Progress, Saved, Started, Stepped


@pytest.fixture(scope="module")
def config(pictures: Path) -> TrainConfig:
    return quick_config(pictures)


@pytest.fixture(scope="module")
def reference(config: TrainConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run that nobody disturbs."""
    out = tmp_path_factory.mktemp("reference")
    run(config, out, cache)
    return out / "adapter.safetensors"


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "home")


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception, step: int = 2) -> None:
    """The first run that comes to that step fails so."""
    whole, failures = Engine.step, iter([error])

    def failing(self: Engine, number: int) -> StepResult:
        if number == step and (now := next(failures, None)) is not None:
            raise now
        return whole(self, number)

    monkeypatch.setattr(Engine, "step", failing)


# --- what they make ---------------------------------------------------------------------------------------


def test_a_job_makes_the_adapter_that_train_makes(queue: Queue, config: TrainConfig, reference: Path):
    id = submit(queue, config)
    work(queue)
    job = queue.get_job(id)
    assert (job.state, job.attempts, job.failure, job.worker) == ("done", 1, None, "device-0")
    assert (job.progress.step, job.progress.steps, job.progress.stage) == (4, 4, "")
    assert job.progress.loss is not None and job.started is not None and job.finished is not None
    assert compose([file_layer(job.run / "config.yaml")]) == config
    check_steps(queue.follow(id).events, 4)
    assert not locks.is_held(locks.run_lock(job.run))
    assert same(job, reference)


def test_jobs_on_one_base_load_it_once_and_learn_the_same(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []
    whole = bases.load_for

    def counting(config: TrainConfig, device: torch.device) -> bases.Base:
        loaded.append(config.base)
        return whole(config, device)

    monkeypatch.setattr(bases, "load_for", counting)
    ids = [submit(queue, config), submit(queue, config.model_copy(update={"seed": 5})), submit(queue, config)]
    work(queue)
    assert len(loaded) == 1
    assert [queue.get_job(id).state for id in ids] == ["done"] * 3
    assert same(queue.get_job(ids[2]), reference)
    assert not same(queue.get_job(ids[1]), reference)


def test_a_worker_stops_after_one_job_where_that_is_asked(queue: Queue, config: TrainConfig):
    ids = [submit(queue, config), submit(queue, config)]
    assert worker(queue, Terms(once=True)).serve()
    assert [queue.get_job(id).state for id in ids] == ["done", "queued"]


# --- what they obey ---------------------------------------------------------------------------------------


def test_a_paused_job_goes_on_as_if_it_had_not_been(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    id = submit(queue, config)
    asked = iter(["pause"])

    def see(event: Event) -> None:
        if isinstance(event, Stepped) and (ask := next(asked, None)):
            queue.send(id, "pause")
            assert ask == "pause"

    watch(monkeypatch, see)
    work(queue)
    job = queue.get_job(id)
    assert (job.state, job.progress.saved_step) == ("paused", 2)
    assert not (job.run / "adapter.safetensors").exists()
    queue.send(id, "resume")
    work(queue)
    assert queue.get_job(id).state == "done"
    check_steps(queue.follow(id).events, 4)
    assert same(queue.get_job(id), reference)


def _loading(event: Event) -> bool:
    return isinstance(event, Note)


def _encoding(event: Event) -> bool:
    return isinstance(event, Progress) and event.stage == "pictures"


def _stepping(event: Event) -> bool:
    return isinstance(event, Stepped)


def _sampling_between(event: Event) -> bool:
    return isinstance(event, Progress) and event.stage == "samples"


def _sampling_at_the_end(event: Event) -> bool:
    return isinstance(event, Saved) and event.step == 4


@pytest.mark.parametrize("phase", [_loading, _encoding, _stepping, _sampling_between, _sampling_at_the_end])
def test_a_job_is_cancelled_in_each_phase_and_the_next_is_none_the_worse(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch, phase: object
):
    assert callable(phase)
    sampling = config.model_copy(
        update={"sample": config.sample.model_copy(update={"count": 1, "every": 2, "inference_steps": 1})}
    )
    first, second = submit(queue, sampling), submit(queue, config)

    def see(event: Event) -> None:
        if phase(event) and queue.get_job(first).state in ("preparing", "running"):
            queue.send(first, "cancel")

    watch(monkeypatch, see)
    work(queue)
    job = queue.get_job(first)
    assert job.state == "cancelled" and not (job.run / "adapter.safetensors").exists()
    assert queue.get_job(second).state == "done"
    assert same(queue.get_job(second), reference)


def test_a_job_that_is_paused_before_its_first_step_begins_anew(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    id = submit(queue, config)
    asks = iter(["pause"])

    def see(event: Event) -> None:
        if _encoding(event) and next(asks, None):
            queue.send(id, "pause")

    watch(monkeypatch, see)
    work(queue)
    assert queue.get_job(id).state == "paused"
    queue.send(id, "resume")
    work(queue)
    assert same(queue.get_job(id), reference)


def test_save_now_and_sample_now_are_done_at_the_next_step(
    queue: Queue, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    sampling = config.model_copy(update={"sample": config.sample.model_copy(update={"count": 1, "inference_steps": 1})})
    id = submit(queue, sampling)

    def see(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 1:
            queue.send(id, "save"), queue.send(id, "sample")

    watch(monkeypatch, see)
    work(queue)
    job = queue.get_job(id)
    assert (job.run / "checkpoints" / "step-000002.safetensors").is_file()
    assert (job.run / "samples" / "step-000003.png").is_file()
    assert job.progress.sample == "samples/step-000004.png"


def test_a_failed_job_is_tried_again_with_other_settings_as_a_new_one(
    queue: Queue, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    fail_once(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    first = submit(queue, config)
    work(queue)
    second = queue.submit(again(queue.get_job(first), preset="low-memory", assignments=["steps=2"]))
    changed = queue.get_job(second).request.config
    assert (changed["gradient_checkpointing"], changed["steps"], changed["seed"]) == (True, 2, config.seed)
    assert queue.get_job(second).run != queue.get_job(first).run


# --- what they survive ------------------------------------------------------------------------------------


def test_too_little_memory_fails_the_job_in_a_sentence_and_not_the_next(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60)
    fail_once(monkeypatch, real.value)
    first, second = submit(queue, config), submit(queue, config)
    work(queue)
    failure = queue.get_job(first).failure
    assert failure is not None and failure.what == "The machine ran out of memory." and failure.remedy == "low-memory"
    assert f"studio jobs retry {first} --preset low-memory" in failure.fix
    assert queue.get_job(second).state == "done" and same(queue.get_job(second), reference)


def test_a_gpu_without_memory_is_called_so(queue: Queue, config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    fail_once(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    id = submit(queue, config)
    work(queue)
    failure = queue.get_job(id).failure
    assert failure is not None and (failure.what, failure.remedy) == ("The GPU ran out of memory.", "low-memory")


def test_a_loss_that_is_no_number_fails_the_job_in_a_sentence(queue: Queue, pictures: Path, config: TrainConfig):
    bad = quick_config(pictures, steps=30, optim={"name": "SGD", "learning_rate": 1e30, "max_grad_norm": 0})
    first, second = submit(queue, bad), submit(queue, config)
    work(queue)
    failure = queue.get_job(first).failure
    assert failure is not None and failure.code == 5 and "no longer a number" in failure.what
    assert queue.get_job(second).state == "done"


def test_a_fault_of_the_app_fails_the_job_alone_and_it_goes_on_from_its_checkpoint(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_once(monkeypatch, ZeroDivisionError("division by zero"))
    saving = config.model_copy(update={"save_every": 1})
    first, second = submit(queue, saving), submit(queue, config)
    work(queue)
    failure = queue.get_job(first).failure
    assert failure is not None and failure.code == 70 and queue.get_job(second).state == "done"
    queue.retry(first)
    work(queue)
    assert queue.get_job(first).state == "done" and queue.get_job(first).failure is None
    assert [e.step for e in queue.follow(first).events if isinstance(e, Started)] == [0, 2]
    assert same(queue.get_job(first), reference)


def test_a_disk_that_fills_up_fails_the_job_and_spoils_nothing(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    """ENOSPC where it hurts most: when the second checkpoint has been written and is to be made safe."""
    whole, calls = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(calls) >= 3:  # config.yaml's and the first checkpoint's, with their folders', have passed
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(handle)

    saving = config.model_copy(update={"save_every": 1})
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
    assert same(queue.get_job(id), reference)


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
    small_disk: Path, config: TrainConfig, reference: Path
):
    """Database, events and checkpoints all lie on it."""
    queue = Queue(small_disk / "home")
    id = submit(queue, config.model_copy(update={"save_every": 1}))
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
    assert queue.get_job(id).state == "done" and same(queue.get_job(id), reference)
    queue.store.close()


def test_a_store_that_cannot_be_written_at_the_end_loses_no_job(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, failures = Claim.end, iter([DiskFullError("The disk is full.")])

    def end(self: Claim, state: State, failure: None = None) -> None:
        if (now := next(failures, None)) is not None:
            raise now
        whole(self, state, failure)

    monkeypatch.setattr(Claim, "end", end)
    monkeypatch.setattr(worker_module, "_AFTER_ERROR_SECONDS", 0.01)
    id = submit(queue, config)
    work(queue)
    assert queue.get_job(id).state == "done" and queue.get_job(id).attempts == 2
    assert same(queue.get_job(id), reference)


def test_a_device_that_answers_no_more_ends_the_process_and_not_the_queue(
    queue: Queue, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "answers", lambda device: False)
    ids = [submit(queue, config), submit(queue, config)]
    assert not worker(queue).serve()
    assert [queue.get_job(id).state for id in ids] == ["done", "queued"]


def test_a_signal_lets_the_step_end_and_the_job_waits_again(
    queue: Queue, config: TrainConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    id, stop = submit(queue, config), Stop(patient=True)

    def see(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, stop.listening():
        watch(patch, see)
        assert worker(queue, stop=stop).serve()
    job = queue.get_job(id)
    assert (job.state, job.progress.saved_step, job.crashes) == ("interrupted", 3, 0)
    work(queue)
    assert same(queue.get_job(id), reference)


def test_a_second_signal_ends_at_once_and_the_job_still_waits(
    queue: Queue, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    id, stop = submit(queue, config), Stop(patient=True)

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
    queue: Queue, config: TrainConfig, cache: Path, tmp_path: Path
):
    out = tmp_path / "out"
    id = submit(queue, config, out)
    run(config, out, cache)
    before = (out / "adapter.safetensors").read_bytes()
    work(queue)
    failure = queue.get_job(id).failure
    assert failure is not None and "finished run" in failure.what
    assert (out / "adapter.safetensors").read_bytes() == before
