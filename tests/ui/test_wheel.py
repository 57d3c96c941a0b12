"""What an installed package needs besides its code."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = (
    "ui/assets/studio.css",
    "ui/samples/octopus/01.png",
    "ui/samples/octopus/01.txt",
    "studio/presets/quick.yaml",
    "studio/batch/report.html.j2",
    "trainers/embedded/base/model_index.json",
    "trainers/embedded/base/unet/diffusion_pytorch_model.safetensors",
    "trainers/sdxl_layout/bpe_simple_vocab_16e6.txt.gz",
)


@pytest.mark.slow
def test_the_wheel_holds_what_the_pages_need(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet", "-w", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, timeout=280)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert [name for name in NEEDED if name not in names] == []
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {
        "adapters", "trainers", "studio", "ui",
    }  # fmt: skip
