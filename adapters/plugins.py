"""Packages whose modules register themselves: methods, starts, ways to fuse, formats."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def import_modules(package: ModuleType) -> None:
    """Imports every module of a package, so that what is in it registers itself."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
