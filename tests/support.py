"""What several test folders need: the base under test and small sets of pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adapters.files import load_adapter
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Event
from trainers.loop import Commands, never, train

BASE = os.environ.get("SPECTRAL_TEST_BASE", "embedded")
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "dreambooth"


def make_pictures(folder: Path, count: int = 3, size: tuple[int, int] = (128, 128)) -> Path:
    """Pictures of a coloured square on a plain ground, each with another ground."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), np.random.default_rng(number).integers(40, 216, 3), np.uint8)
        pixels[size[1] // 4 : -size[1] // 4, size[0] // 4 : -size[0] // 4] = (230, 60, 20)
        pixels[size[1] // 2 :: 4, size[0] // 4 : -size[0] // 4] = (20, 40, 200)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def quick_config(folder: Path, **changes: object) -> TrainConfig:
    """A few cheap steps on the embedded base, no samples; `changes` replace whole groups or values."""
    whole: dict[str, object] = {
        "base": BASE,
        "data": {
            "folder": folder,
            "captions": {"trigger": "sks", "class_word": "octopus"},
            "crop_variants": 2,
        },
        "adapter": {"method": "lora", "rank": 4},
        "optim": {"learning_rate": 2e-3},
        "sample": {"count": 0},
        "steps": 4,
    }
    return TrainConfig.model_validate({**whole, **changes})


def run(
    config: TrainConfig, out: Path, cache: Path, *, resume: bool = False, commands: Commands = never
) -> list[Event]:
    """All events of a training run on the CPU."""
    made = train(config, out, resume=resume, device="cpu", commands=commands, cache=TensorCache(cache / "tensors"))
    return list(made)


def adapter_tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_adapter(path).tensors
