"""Checks, at run time, the array shapes in signatures and nothing else: pyright checks the other types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype

_ARRAYS = ("Float[", "Int[", "Bool[", "UInt8[")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on a function whose annotations without an array are left out."""
    kept = {name: hint for name, hint in function.__annotations__.items() if any(word in str(hint) for word in _ARRAYS)}
    function.__annotations__ = kept
    return beartype(function) if kept else function
