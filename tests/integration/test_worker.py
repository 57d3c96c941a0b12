"""Workers on the embedded base: what they make, obey and survive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.files import read_header
from studio import locks
from studio.config import compose, file_layer
from studio.library import Library
from studio.queue import Queue
from studio.submitting import again
from studio.workers import Terms
from tests.jobs import check_steps, fail_once, same, submit, watch, work, worker
from trainers import bases
from trainers.config import TrainConfig
from trainers.events import Event, Note, Progress, Saved, Stepped


def drawing(config: TrainConfig, every: int) -> TrainConfig:
    """With the cheapest samples there are."""
    sample = config.sample.model_copy(update={"count": 1, "every": every, "inference_steps": 1})
    return config.model_copy(update={"sample": sample})


# --- what they make ---------------------------------------------------------------------------------------


def test_a_job_makes_the_adapter_that_train_makes(queue: Queue, job_config: TrainConfig, job_reference: Path):
    id = submit(queue, job_config)
    work(queue)
    job = queue.get_job(id)
    assert (job.state, job.attempts, job.failure, job.worker) == ("done", 1, None, "device-0")
    assert (job.progress.step, job.progress.steps, job.progress.stage) == (4, 4, "")
    assert job.progress.loss is not None and job.started is not None and job.finished is not None
    assert compose([file_layer(job.run / "config.yaml")]) == job_config
    check_steps(queue.follow(id).events, 4)
    assert not locks.is_held(locks.run_lock(job.run))
    assert same(job, job_reference)


def test_a_finished_adapter_is_in_the_library(queue: Queue, job_config: TrainConfig):
    id = submit(queue, job_config)
    work(queue)
    library = Library(queue.home)
    (entry,) = library.list_adapters("sks octopus")
    made = queue.get_job(id).run / "adapter.safetensors"
    assert (entry.job, entry.method, entry.base_hash) == (id, "lora", read_header(made).card.base_hash)
    assert library.path_of(entry.id).read_bytes() == made.read_bytes()


def test_a_library_that_cannot_be_written_fails_no_job(queue: Queue, job_config: TrainConfig):
    (queue.home / "library").write_text("a file")
    id = submit(queue, job_config)
    work(queue)
    assert queue.get_job(id).state == "done"


def test_jobs_on_one_base_load_it_once_and_learn_the_same(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []
    whole = bases.load_for

    def counting(config: TrainConfig, device: torch.device) -> bases.Base:
        loaded.append(config.base)
        return whole(config, device)

    monkeypatch.setattr(bases, "load_for", counting)
    other = job_config.model_copy(update={"seed": 5})
    ids = [submit(queue, config) for config in (job_config, other, job_config)]
    work(queue)
    assert len(loaded) == 1
    assert [queue.get_job(id).state for id in ids] == ["done"] * 3
    assert same(queue.get_job(ids[2]), job_reference)
    assert not same(queue.get_job(ids[1]), job_reference)


def test_a_worker_stops_after_one_job_where_that_is_asked(queue: Queue, job_config: TrainConfig):
    ids = [submit(queue, job_config), submit(queue, job_config)]
    assert worker(queue, Terms(once=True)).serve()
    assert [queue.get_job(id).state for id in ids] == ["done", "queued"]


# --- what they obey ---------------------------------------------------------------------------------------


def test_a_paused_job_goes_on_as_if_it_had_not_been(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    id = submit(queue, job_config)
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
    assert same(queue.get_job(id), job_reference)


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
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch, phase: object
):
    assert callable(phase)
    sampling = drawing(job_config, every=2)
    first, second = submit(queue, sampling), submit(queue, job_config)

    def see(event: Event) -> None:
        if phase(event) and queue.get_job(first).state in ("preparing", "running"):
            queue.send(first, "cancel")

    watch(monkeypatch, see)
    work(queue)
    job = queue.get_job(first)
    assert job.state == "cancelled" and not (job.run / "adapter.safetensors").exists()
    assert queue.get_job(second).state == "done"
    assert same(queue.get_job(second), job_reference)


def test_a_job_that_is_paused_before_its_first_step_begins_anew(
    queue: Queue, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    id = submit(queue, job_config)
    asks = iter(["pause"])

    def see(event: Event) -> None:
        if _encoding(event) and next(asks, None):
            queue.send(id, "pause")

    watch(monkeypatch, see)
    work(queue)
    assert queue.get_job(id).state == "paused"
    queue.send(id, "resume")
    work(queue)
    assert same(queue.get_job(id), job_reference)


def test_save_now_and_sample_now_are_done_at_the_next_step(
    queue: Queue, job_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    sampling = drawing(job_config, every=0)
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
    queue: Queue, job_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    fail_once(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    first = submit(queue, job_config)
    work(queue)
    second = queue.submit(again(queue.get_job(first), preset="low-memory", assignments=["steps=2"]))
    changed = queue.get_job(second).config
    assert (changed["gradient_checkpointing"], changed["steps"], changed["seed"]) == (True, 2, job_config.seed)
    assert queue.get_job(second).run != queue.get_job(first).run
