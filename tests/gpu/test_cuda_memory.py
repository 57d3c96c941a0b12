"""What whole runs hold of a GPU at SDXL's real size (random weights, 1024 px), and when their first step comes.

Run with `pytest -m gpu tests/gpu/test_cuda_memory.py`: alone on the card. Last run: see docs/speed.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.random_sdxl import random_pipeline
from benchmarks.speed.whole_run import make_pictures, measure_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
RESERVED = 1.15
"""What torch may take from the card for each byte that it gives out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sdxl")
    random_pipeline(device="cuda").save_pretrained(path)
    torch.cuda.empty_cache()
    return path


@pytest.mark.parametrize(("preset", "gib"), [("balanced", 9.5), ("small-gpu", 7.0), ("low-memory", 4.0)])
def test_a_run_from_the_pictures_to_the_samples_fits(folder: Path, tmp_path: Path, preset: str, gib: float):
    pictures = make_pictures(tmp_path / "pictures", 2)
    settings = ["steps=12", "save_every=0", "sample.count=2", "sample.inference_steps=4"]
    found = measure_run(folder, pictures, tmp_path / "out", preset, settings)
    assert found["allocated_gib"] <= gib
    assert found["reserved_gib"] <= RESERVED * found["allocated_gib"]
