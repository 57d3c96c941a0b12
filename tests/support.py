"""What several test folders need: the base under test and small sets of pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adapters.adapter_set import AdapterSet
from adapters.files import load_adapter
from adapters.inject import attach
from adapters.registry import make_spec
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Event
from trainers.loop import Commands, never, train
from trainers.sdxl import Base, generate

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


def random_lora(base: Base, seed: int = 0, size: float = 0.1) -> AdapterSet:
    """A LoRA that changes pictures, attached to the UNet's attentions."""
    adapters = attach(base.components, make_spec("lora", rank=4), {"unet": "attention"}, seed=seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            if name.endswith("up"):
                parameter.add_(size * torch.randn(parameter.shape, generator=draws))
    return adapters.eval()


def drawn(base: Base, prompt: str) -> torch.Tensor:
    """One picture in three steps, [h, w, 3]."""
    (picture,) = generate(base, [prompt], seeds=[0], inference_steps=3)
    return torch.from_numpy(np.array(picture)).float()


def predicted(base: Base, prompt: str) -> torch.Tensor:
    """The UNet's answer to one noise, without and with a prompt."""
    states = base.encode_texts([prompt])
    side = base.native_resolution // base.scale_factor
    noise = torch.randn(1, base.unet.config["in_channels"], side, side, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]]).expand(2, -1)
    known = {"text_embeds": states.pooled.expand(2, -1), "time_ids": times}
    with torch.no_grad():
        return base.unet(
            noise.expand(2, -1, -1, -1),
            500,
            states.context.expand(2, -1, -1),
            added_cond_kwargs=known,
            return_dict=False,
        )[0]
