"""Workers on a CUDA card: what a job leaves of the card's memory and of the base, and what they survive.

Run with `pytest -m gpu tests/gpu/test_cuda_jobs.py`: alone on the card.
"""

from __future__ import annotations

import gc
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from studio.queue import Queue
from studio.stopping import Stop
from studio.worker import Worker, answers
from tests.jobs import UNTIL_EMPTY, submit
from tests.support import make_pictures, quick_config
from trainers.bases import load_for
from trainers.config import TrainConfig
from trainers.engine import Engine, StepResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
CARD = torch.device("cuda:0")


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrainConfig:
    return quick_config(make_pictures(tmp_path / "pictures"), base=str(folder), steps=12)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "home")


def worker(queue: Queue) -> Worker:
    return Worker(queue, "device-0", "cuda:0", Stop(patient=True), Console(file=StringIO()), UNTIL_EMPTY)


def test_jobs_leave_the_card_and_the_base_as_they_were(queue: Queue, config: TrainConfig):
    """Three methods one after the other on one base."""
    changes = [{}, {"adapter": {"method": "dora", "rank": 4}}, {"gradient_checkpointing": True}]
    made = [quick_config(config.data.folder, base=config.base, steps=12, **change) for change in changes]
    one = worker(queue)
    for each in made:  # libraries take their workspaces: DoRA's products another one than LoRA's
        submit(queue, each)
    assert one.serve()
    one.keeper.drop()
    ids = [submit(queue, each) for each in made]
    fresh = {name: value.clone() for name, value in load_for(config, CARD).unet.state_dict().items()}
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CARD)
    assert one.serve()
    assert [queue.get_job(id).state for id in ids] == ["done"] * 3
    kept = one.keeper(config, CARD).unet.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in fresh.items())
    one.keeper.drop()
    del kept
    gc.collect()
    assert torch.cuda.memory_allocated(CARD) - before < 2**20


def test_too_little_memory_of_the_card_fails_one_job_alone(
    queue: Queue, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    whole, greedy = Engine.step, iter([3])

    def step(self: Engine, number: int) -> StepResult:
        if number == 3 and next(greedy, None):
            torch.empty(1 << 50, dtype=torch.uint8, device=CARD)
        return whole(self, number)

    monkeypatch.setattr(Engine, "step", step)
    first, second = submit(queue, config), submit(queue, config)
    assert worker(queue).serve()
    failure = queue.get_job(first).failure
    assert failure is not None and (failure.what, failure.remedy) == ("The GPU ran out of memory.", "low-memory")
    assert queue.get_job(second).state == "done"
    assert answers("cuda:0")
