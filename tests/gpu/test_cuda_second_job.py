"""A worker's second job on a CUDA card: it replays the first one's recordings, with its own numbers.

Run with `pytest -m gpu -s tests/gpu/test_cuda_second_job.py`: it prints seconds to the first steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from studio.queue import Queue
from studio.stopping import Stop
from studio.worker import Worker
from tests.jobs import UNTIL_EMPTY, submit, watch
from tests.support import make_pictures, quick_config
from trainers.config import TrainConfig
from trainers.events import Event, Stepped
from trainers.fast.capture import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
SAME_RUN = 2e-3
"""As in test_cuda_speed: the order of atomic sums in libraries differs."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAL_STUDIO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Hashable]:
    """Names of the steps that were recorded."""
    names: list[Hashable] = []
    whole = Recorder._record

    def record(self: Recorder, name: Hashable, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        if isinstance(name, tuple) and name[0] == "step":
            names.append(name)
        return whole(self, name, work)

    monkeypatch.setattr(Recorder, "_record", record)
    return names


def worker(home: Path) -> Worker:
    return Worker(Queue(home), "device-0", "cuda:0", Stop(patient=True), Console(file=StringIO()), UNTIL_EMPTY)


def done(one: Worker, config: TrainConfig) -> list[float]:
    """The losses of a job that this worker does now; each takes the first slot, whoever had it before."""
    id = submit(one.queue, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAL_STUDIO_STATE", str(one.queue.home / f"state-{id}"))
        assert one.serve()
    job = one.queue.get_job(id)
    assert job.state == "done", job.failure
    return [event.loss for event in one.queue.follow(id).events if isinstance(event, Stepped)]


def two_jobs(folder: Path, tmp_path: Path, **changes: object) -> tuple[TrainConfig, TrainConfig]:
    """Of one key: other pictures and more of them, another seed and rate."""
    common = {"base": str(folder), "steps": 12, "precision": "bf16", "sample": {"count": 1, "inference_steps": 2}}
    first = quick_config(make_pictures(tmp_path / "first", 2), **common, **changes)
    other = quick_config(make_pictures(tmp_path / "second", 4), **common, **changes, seed=7)
    return first, other.model_copy(update={"optim": other.optim.model_copy(update={"learning_rate": 1e-3})})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": {"method": "dora", "rank": 4}},
        {"adapter": {"method": "spectral-r", "rank": 4}},
        {"adapter": {"method": "vera", "rank": 4}},
        {"adapter": {"method": "lora", "rank": 4, "dropout": 0.1}, "ema_decay": 0.9},
        {"targets": {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"}},
        {"quantization": "nf4"},
    ],
    ids=["lora", "dora", "spectral-r", "vera", "dropout and average", "text encoders", "nf4"],
)
def test_a_second_job_replays_the_firsts_steps_and_has_the_losses_of_a_worker_of_its_own(
    folder: Path,
    tmp_path: Path,
    recorded: list[Hashable],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
):
    first, second = two_jobs(folder, tmp_path, **changes)
    alone = done(worker(tmp_path / "alone"), second)
    one, steps = worker(tmp_path / "both"), list[float]()

    def see(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 1:
            steps.append(time.perf_counter())

    watch(monkeypatch, see)
    taken: list[float] = []
    for config in (first, second):
        made, begun = len(recorded), time.perf_counter()
        losses = done(one, config)
        taken.append(steps[-1] - begun)
    assert len(recorded) == made
    assert losses == pytest.approx(alone, rel=SAME_RUN)
    print(f"\n{changes}: first step after {taken[0]:.2f} s, in the second job after {taken[1]:.2f} s")


def test_other_shapes_let_go_of_what_was_kept(folder: Path, tmp_path: Path, recorded: list[Hashable]):
    first, _ = two_jobs(folder, tmp_path)
    one = worker(tmp_path / "home")
    done(one, first)  # libraries take their workspaces
    one.keeper.drop()
    before, made = torch.cuda.memory_allocated(), len(recorded)
    done(one, first)
    done(one, first.model_copy(update={"batch_size": 2}))
    assert len(recorded) == made + 2
    one.keeper.drop()
    assert torch.cuda.memory_allocated() - before < 2**20
