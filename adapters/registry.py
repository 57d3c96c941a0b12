"""Specs by the name of their method: from code, YAML, a file's header or the command line."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from pydantic import ValidationError

from adapters import methods
from adapters.base import REGISTRY, Adapter, AdapterSpec
from adapters.errors import UnknownNameError, UserInputError

for _module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
    importlib.import_module(_module.name)


def adapter_type(method: str) -> type[Adapter]:
    """The class of a method. Raises UnknownNameError with the nearest name."""
    if method not in REGISTRY:
        raise UnknownNameError("adapter method", method, REGISTRY)
    return REGISTRY[method]


def make_spec(method: str, **knobs: object) -> AdapterSpec:
    """The spec of `method` with these knobs; every other keeps its default.

    Raises:
        UnknownNameError: no such method, or no such knob; names the nearest.
        UserInputError: a knob has an impossible value.
    """
    spec_type = adapter_type(method).spec_type
    options = set(spec_type.model_fields) - {"method"}
    for knob in knobs:
        if knob not in options:
            raise UnknownNameError(f"knob of {method} called", knob, options)
    try:
        return spec_type.model_validate(knobs)
    except ValidationError as error:
        first = error.errors()[0]
        knob = ".".join(str(part) for part in first["loc"])
        raise UserInputError(
            f"{method}: {knob} = {first['input']!r} will not do: {first['msg']}.",
            f"{knob}: {spec_type.model_fields[knob].description if knob in options else 'see the docs'}",
        ) from error


def parse_spec(data: Mapping[str, object]) -> AdapterSpec:
    """make_spec from a mapping with the key "method", as files and YAML hold it."""
    method = data.get("method")
    if not isinstance(method, str):
        raise UserInputError("An adapter needs a method.", f"Set method to one of: {', '.join(sorted(REGISTRY))}.")
    return make_spec(method, **{key: value for key, value in data.items() if key != "method"})
