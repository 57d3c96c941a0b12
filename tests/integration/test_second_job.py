"""A run that replays what the run before it has recorded learns what it learns alone, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.registry import REGISTRY
from tests.support import adapter_tensors, make_pictures, quick_config, run
from tests.tape import TapeRecorder
from trainers import stage
from trainers.bases import BaseKeeper
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Stepped
from trainers.loop import train

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "masks, caption dropout, accumulation": {
        "data": {"folder": ".", "captions": {"trigger": "sks", "dropout": 0.5}, "masked_loss": True},
        "gradient_accumulation": 2,
    },
    "dropout": {"adapter": {"method": "lora", "rank": 4, "dropout": 0.3}},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "class pictures": {"prior": {"weight": 0.5, "pictures": 2}, "batch_size": 2, "sample": {"inference_steps": 1}},
    "text encoders": {"targets": {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"}},
    "rule": {"optim": {"rule": "lora-fa"}, "adapter": {"method": "lora", "init": "pissa"}},
}


def configs(folder: Path, change: dict[str, Any]) -> tuple[TrainConfig, TrainConfig]:
    """Two of one key: other pictures and more of them, another word, seed, rate and length."""
    made = quick_config(folder, steps=3, **change)
    words = made.data.captions.model_copy(update={"trigger": "ohwx"})
    data = made.data.model_copy(update={"folder": make_pictures(folder / "first", 2)})
    others = made.data.model_copy(update={"folder": make_pictures(folder / "second", 4), "captions": words})
    optim = made.optim.model_copy(update={"learning_rate": 1e-3, "schedule": "cosine"})
    return made.model_copy(update={"data": data}), made.model_copy(update={"data": others, "optim": optim, "seed": 7})


def compared(tmp_path: Path, cache: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many recordings the second run made; it is compared with the same run alone."""
    first, second = configs(tmp_path, change)
    alone = run(second, tmp_path / "alone", cache)
    monkeypatch.setattr(stage, "Recorder", TapeRecorder)
    keeper, tensors = BaseKeeper(), TensorCache(cache / "tensors")
    list(train(first, tmp_path / "1", device="cpu", cache=tensors, bases=keeper))
    before = TapeRecorder.made
    events = list(train(second, tmp_path / "2", device="cpu", cache=tensors, bases=keeper))
    losses, wanted = ([e.loss for e in run if isinstance(e, Stepped)] for run in (events, alone))
    assert losses == wanted
    made, expected = (adapter_tensors(tmp_path / out / "adapter.safetensors") for out in ("2", "alone"))
    assert made.keys() == expected.keys() and all(made[name].equal(expected[name]) for name in made)
    return TapeRecorder.made - before


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_job_replays_the_first_ones_recordings_and_learns_the_same(
    tmp_path: Path, cache: Path, variant: str, monkeypatch: pytest.MonkeyPatch
):
    assert compared(tmp_path, cache, VARIANTS[variant], monkeypatch) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_every_method_is_replayed_with_the_second_jobs_factors(
    tmp_path: Path, cache: Path, method: str, monkeypatch: pytest.MonkeyPatch
):
    compared(tmp_path, cache, {"adapter": {"method": method}, "targets": {"unet": "attention, conv"}}, monkeypatch)
