"""A run that replays what the run before it has recorded learns what it learns alone, bit for bit."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.inject import build
from adapters.registry import REGISTRY
from tests.support import adapter_tensors, make_pictures, quick_config, run
from tests.tape import TapeRecorder
from trainers import stage
from trainers.bases import BaseKeeper
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Stepped
from trainers.loop import train
from trainers.sdxl import Base
from trainers.world import ALONE

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "masks, dropouts, accumulation": {
        "data": {"folder": ".", "captions": {"trigger": "sks", "dropout": 0.5}, "masked_loss": True},
        "adapter": {"method": "lora", "rank": 4, "dropout": 0.3},
        "gradient_accumulation": 2,
    },
    "class pictures, text encoders, gradient checkpointing": {
        "prior": {"weight": 0.5, "pictures": 2},
        "batch_size": 2,
        "sample": {"inference_steps": 1},
        "targets": {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"},
        "gradient_checkpointing": True,  # not with dropout: what draws again is recorded by no tape
    },
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


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({"seed": 3, "steps": 9, "optim": {"learning_rate": 1e-5, "name": "SGD"}, "ema_decay": 0.9}, True),
    ({"adapter": {"method": "lora", "rank": 8}}, False),
    ({"adapter": {"method": "dora", "rank": 4}}, False),
    ({"batch_size": 2}, False),
    ({"objective": {"loss": "huber"}}, False),
    ({"optim": {"rule": "lora-fa"}}, False),
    ({"prior": {"weight": 1.0}}, False),
]


@pytest.mark.parametrize(("change", "same"), CHANGES)
def test_recordings_are_lent_to_runs_that_would_record_the_same(
    base: Base, tmp_path: Path, change: dict[str, Any], same: bool
):
    def key(config: TrainConfig) -> Hashable:
        adapter = build(base.components, config.adapter, config.targets.chosen(), config.seed)
        return stage.stage_key(config, adapter, torch.float32, ALONE)

    first, other = key(quick_config(tmp_path)), key(quick_config(tmp_path, **change))
    assert first is not None and (first == other) == same


def test_a_stage_of_another_key_is_let_go_of_and_the_unet_is_as_it_was(base: Base):
    storages = {p.untyped_storage().nbytes() for p in base.unet.parameters()}
    made, stages = stage.Stage(base.unet, "sdpa", record=True), stage.Stages()
    stages.keeps = True
    stages.keep("one", made)
    made.close()
    assert {p.untyped_storage().nbytes() for p in base.unet.parameters()} != storages  # packed, for recordings
    assert not any("forward" in vars(module) for module in base.unet.modules())
    assert stages.borrow("another") is None and stages.borrow("one") is None
    assert {p.untyped_storage().nbytes() for p in base.unet.parameters()} == storages
