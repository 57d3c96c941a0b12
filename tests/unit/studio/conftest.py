"""A queue of three jobs, and a library of two adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.library import Library
from studio.queue import Queue
from tests.library import made
from tests.submissions import submission


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


@pytest.fixture
def dog(library: Library, tmp_path: Path) -> str:
    return library.add(made(tmp_path / "dog.safetensors"))


@pytest.fixture
def cat(library: Library, tmp_path: Path) -> str:
    return library.add(made(tmp_path / "cat.safetensors", 1, "dora", trigger="zwx", class_word="cat", base_hash="b"))


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


@pytest.fixture
def three(queue: Queue) -> list[str]:
    return [queue.submit(submission(name)) for name in "abc"]
