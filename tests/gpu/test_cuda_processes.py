"""Two CUDA cards that share each batch: recorded sums give the losses of one card, and both end with the same bits.

Run with `pytest -m gpu` where there are two.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from studio.runs import RunFolder
from tests.parallel import together, train_all
from tests.support import make_pictures, quick_config
from tests.tolerances import same_bits
from trainers.config import TrainConfig
from trainers.events import Stepped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA cards here"),
]
SAME_RUN = 5e-3
"""Losses of twelve bf16 steps: kernels for other batch sizes round otherwise."""
CASES: dict[str, dict[str, object]] = {
    "lora": {},
    "eager": {"capture": "off"},
    "samples between": {"sample": {"count": 1, "every": 4, "inference_steps": 2}},
    "class pictures, accumulation, average": {
        "prior": {"weight": 0.5, "pictures": 4},
        "gradient_accumulation": 2,
        "ema_decay": 0.9,
    },
    "adalora": {"adapter": {"method": "adalora", "rank": 4, "initial": 0.1, "final": 0.4, "interval": 1}},
    "rosa": {"adapter": {"method": "rosa", "rank": 4, "calibration_draws": 2}},
    "lora-pro": {"optim": {"learning_rate": 2e-3, "rule": "lora-pro"}},
    "fp16": {"precision": "fp16"},
}


def config(pictures: Path, base: Path, **changes: object) -> TrainConfig:
    return quick_config(pictures, **{"base": str(base), "steps": 12, "precision": "bf16", "batch_size": 4, **changes})


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of every case's run by two cards and by one."""
    two, one, cache = (tmp_path_factory.mktemp(name) for name in ("two", "one", "cache"))
    pictures = make_pictures(cache / "pictures", count=5)
    configs = {name: config(pictures, folder, **changes) for name, changes in CASES.items()}
    together(train_all, {two / name: made for name, made in configs.items()}, cache, gpus=True)
    train_all({one / name: made for name, made in configs.items()}, cache, device="cuda")
    return two, one


def losses(out: Path) -> list[float]:
    return [event.loss for event in RunFolder(out).read_events() if isinstance(event, Stepped)]


@pytest.mark.parametrize("case", CASES)
def test_two_cards_have_the_losses_of_one(made: tuple[Path, Path], case: str):
    two, one = made
    assert losses(two / case) == pytest.approx(losses(one / case), rel=SAME_RUN)


@pytest.mark.parametrize("case", CASES)
def test_both_cards_end_with_the_same_adapter_bit_for_bit(made: tuple[Path, Path], case: str):
    first, second = (load_file(made[0] / case / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", ["lora", "samples between", "class pictures, accumulation, average"])
def test_the_sum_over_the_cards_is_recorded(made: tuple[Path, Path], case: str):
    for rank in (0, 1):
        with safe_open(made[0] / case / f"rank-{rank}.safetensors", "pt") as file:
            assert file.metadata() == {"problems": ""}
