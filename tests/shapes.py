"""Checks, at run time, the array shapes in signatures and nothing else: pyright checks the other types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

_ARRAYS = ("Float[", "Int[", "Bool[", "UInt8[")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on a function whose annotations without an array are left out."""
    kept = {name: hint for name, hint in function.__annotations__.items() if _is_array(hint)}
    function.__annotations__ = kept
    return beartype(function) if kept else function


def _is_array(hint: Any) -> bool:
    return any(word in str(hint) for word in _ARRAYS)


def leave_the_others_alone() -> None:
    """Has jaxtyping's hook wrap only functions that have arrays: every call of a wrapped one costs 4 microseconds."""
    jaxtyped = jaxtyping.jaxtyped

    def where_arrays_are(function: Any = None, **options: Any) -> Any:
        if function is None:
            return lambda given: where_arrays_are(given, **options)
        alone = inspect.isfunction(function) and not any(map(_is_array, function.__annotations__.values()))
        return function if alone else jaxtyped(function, **options)

    jaxtyping.jaxtyped = where_arrays_are
