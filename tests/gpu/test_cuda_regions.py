"""Regions that are found while the picture is drawn, on a CUDA card: recorded steps draw what eager ones do."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.support import random_lora
from trainers import auto_regions
from trainers.fast.sampling import fast_sampling
from trainers.mentions import Subject
from trainers.sdxl import generate, load_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
PROMPT = "a sks octopus and a zwx rocket"
SUBJECTS = [Subject("sks", "octopus"), Subject("zwx", "rocket")]


def test_batches_with_regions_of_their_own_are_recorded_anew(monkeypatch: pytest.MonkeyPatch):
    base = load_base("embedded", device="cuda")
    sets = [random_lora(base, seed, 0.05).to("cuda") for seed in (1, 2)]
    side = base.native_resolution

    def draw() -> np.ndarray:
        found = auto_regions.AutoRegions(
            base, [PROMPT] * 4, SUBJECTS, list(zip(sets, (0, 1), strict=True)), [], (side, side), True
        )
        with fast_sampling(base.unet, sets):
            made = generate(base, [PROMPT] * 4, seeds=range(4), inference_steps=10, batch_size=2, routing=found)
            return np.stack([np.array(picture).astype(int) for picture in made])

    recorded = draw()
    monkeypatch.setattr(auto_regions, "recorded", lambda _: nullcontext())
    assert np.abs(recorded - draw()).mean() < 1
