"""Pictures that the tests of the data side make themselves, and the real photographs where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SavePicture = Callable[..., Path]
PHOTOGRAPHS = Path(__file__).resolve().parents[4] / "shared" / "data" / "dreambooth"


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse colour noise: sharp edges, and unlike that of another seed."""
    cells = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


@pytest.fixture
def save_picture(folder: Path) -> SavePicture:
    """save_picture(name, width=96, height=80, seed=0, **save options) → path of a new picture in `folder`."""

    def save(name: str, width: int = 96, height: int = 80, seed: int = 0, **options: object) -> Path:
        noise_picture(width, height, seed).save(folder / name, **options)
        return folder / name

    return save


@pytest.fixture
def photographs() -> Path:
    """The folder of the 14 DreamBooth subjects."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"the real photographs are not at {PHOTOGRAPHS}")
    return PHOTOGRAPHS
