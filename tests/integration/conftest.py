"""What integration tests share: a cache, pictures and the base, one a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.formats import Components
from tests.support import BASE, make_pictures
from trainers.sdxl import Base, load_base


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
