"""What the card's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_sdxl import random_pipeline
from trainers.sources import EMBEDDED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the embedded one's shapes, with random weights."""
    path = tmp_path_factory.mktemp("base")
    random_pipeline(EMBEDDED).save_pretrained(path)
    return path
