"""What integration tests share: a cache, pictures and the base, one a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

from studio.queue import Queue
from tests.formats import Components
from tests.support import BASE, make_pictures, quick_config, run
from trainers.config import TrainConfig
from trainers.sdxl import Base, load_base


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes are checked by the unit tests, and here where every method trains: it takes a seventh of a training."""
    jaxtyping.config.update("jaxtyping_disable", request.module.__name__.rpartition(".")[2] != "test_methods")
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BASE)


@pytest.fixture(scope="module")
def components(base: Base) -> Components:
    return dict(base.components)


@pytest.fixture(scope="module")
def job_config(pictures: Path) -> TrainConfig:
    return quick_config(pictures)


@pytest.fixture(scope="module")
def job_reference(job_config: TrainConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run that nobody disturbs."""
    out = tmp_path_factory.mktemp("reference")
    run(job_config, out, cache)
    return out / "adapter.safetensors"


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "home")
