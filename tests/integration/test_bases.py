"""A base that several runs borrow, one after the other: each finds it as the first one did."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.errors import DivergedError, UserInputError
from tests.support import adapter_tensors, quick_config, run
from trainers.bases import BaseKeeper, load_for
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Event, Started, Stepped
from trainers.loop import train
from trainers.sdxl import Base

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora on all layers": {"adapter": {"method": "dora", "rank": 2}, "targets": {"unet": "all"}},
    "pissa": {"adapter": {"method": "lora", "rank": 4, "init": "pissa"}},
    "spectral": {"adapter": {"method": "spectral-r", "rank": 4}},
    "text encoders": {"targets": {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"}},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "v-prediction": {"objective": {"prediction_type": "v_prediction", "zero_terminal_snr": True}},
    "gates": {"adapter": {"method": "ia3"}, "targets": {"unet": "linear"}},
    "samples": {"sample": {"count": 1, "inference_steps": 2}},
}


def weights(base: Base) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, by component."""
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in base.pipe.components.items()
        if isinstance(module, nn.Module)
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def traces(base: Base) -> list[tuple[Any, ...]]:
    """What runs could leave behind besides: classes, own forwards, hooks, modes, storage shared between weights."""
    return [
        (
            name,
            type(module),
            "forward" in vars(module),
            [len(vars(module)[kind]) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")],
            module.training,
            getattr(module, "gradient_checkpointing", None),
            [(p.requires_grad, p.grad is None, p.stride(), p.storage_offset()) for p in module.parameters(False)],
        )
        for name, module in base.unet.named_modules()
    ]


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def borrow(base: Base, config: TrainConfig, out: Path, cache: Path, until: type[Event] | None = None) -> None:
    """A run on `base`, closed at the first event of that type."""
    stream = train(config, out, device="cpu", cache=TensorCache(cache / "tensors"), bases=lambda *_: base)
    for event in stream:
        if until is not None and isinstance(event, until):
            break
    stream.close()


@pytest.mark.parametrize(
    ("variant", "until"),
    [*((name, None) for name in VARIANTS), ("lora", Started), ("text encoders", Stepped), ("gates", Stepped)],
)
def test_a_run_leaves_the_base_as_it_was(
    pictures: Path, cache: Path, tmp_path: Path, variant: str, until: type[Event] | None
):
    config = quick_config(pictures, steps=2, **VARIANTS[variant])
    base = load_for(config, CPU)
    tensors, left, scheduler = weights(base), traces(base), base.pipe.scheduler
    borrow(base, config, tmp_path, cache, until)
    assert same(tensors, weights(base))
    assert traces(base) == left
    assert base.pipe.scheduler is scheduler


def test_a_run_that_diverges_leaves_the_base_as_it_was(pictures: Path, cache: Path, tmp_path: Path):
    config = quick_config(pictures, steps=30, optim={"name": "SGD", "learning_rate": 1e30, "max_grad_norm": 0})
    base = load_for(config, CPU)
    tensors, left = weights(base), traces(base)
    with pytest.raises(DivergedError):
        borrow(base, config, tmp_path, cache)
    assert same(tensors, weights(base)) and traces(base) == left


def test_runs_on_a_kept_base_learn_what_they_learn_alone(pictures: Path, cache: Path, tmp_path: Path):
    configs = [quick_config(pictures, **VARIANTS[name]) for name in ("dora on all layers", "gates", "lora")]
    keeper = BaseKeeper()
    for number, config in enumerate(configs):
        alone = tmp_path / f"alone-{number}"
        run(config, alone, cache)
        kept = tmp_path / f"kept-{number}"
        list(train(config, kept, device="cpu", cache=TensorCache(cache / "tensors"), bases=keeper))
        first, second = (adapter_tensors(out / "adapter.safetensors") for out in (alone, kept))
        assert same(first, second)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"seed": 3}, True),
        ({"adapter": {"method": "dora"}}, True),
        ({"objective": {"prediction_type": "v_prediction"}}, True),
        ({"precision": "bf16"}, False),
        ({"quantization": "fp8"}, False),
        ({"vae_tiling": True}, False),
        ({"targets": {"unet": "attention", "text_encoder": "attention"}}, False),
    ],
)
def test_a_base_is_kept_for_runs_that_want_the_same(pictures: Path, change: dict[str, Any], kept: bool):
    keeper = BaseKeeper()
    first = keeper(quick_config(pictures), CPU)
    assert (keeper(quick_config(pictures, **change), CPU) is first) == kept


def test_a_base_whose_files_have_changed_is_loaded_anew(pictures: Path, base: Base, tmp_path: Path):
    base.pipe.save_pretrained(tmp_path / "base")
    config, keeper = quick_config(pictures, base=str(tmp_path / "base")), BaseKeeper()
    first = keeper(config, CPU)
    assert keeper(config, CPU) is first
    os.utime(next((tmp_path / "base" / "unet").glob("*.safetensors")), (1, 1))
    assert keeper(config, CPU) is not first


def test_a_base_that_was_dropped_is_gone(pictures: Path):
    keeper = BaseKeeper()
    first = keeper(quick_config(pictures), CPU)
    keeper.drop()
    assert keeper(quick_config(pictures), CPU) is not first


def test_a_schedule_that_the_base_cannot_follow_is_refused_and_put_back(pictures: Path, cache: Path, tmp_path: Path):
    config = quick_config(pictures, objective={"zero_terminal_snr": True})
    base = load_for(config, CPU)
    scheduler = base.pipe.scheduler
    with pytest.raises(UserInputError, match="v-prediction"):
        borrow(base, config, tmp_path, cache)
    assert base.pipe.scheduler is scheduler
