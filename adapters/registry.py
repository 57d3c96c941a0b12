"""Specs by the name of their method: from code, YAML, a file's header or the command line."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from adapters import inits, methods
from adapters.base import REGISTRY, Adapter, AdapterSpec
from adapters.errors import UnknownNameError, UserInputError
from adapters.magnitude import magnitude_over
from adapters.plugins import import_modules

for _package in (methods, inits):
    import_modules(_package)


def adapter_type(method: str) -> type[Adapter]:
    """The class of a method. Raises UnknownNameError with the nearest name."""
    if method not in REGISTRY:
        raise UnknownNameError("adapter method", method, REGISTRY)
    return REGISTRY[method]


def layer_type(spec: AdapterSpec) -> type[Adapter]:
    """The class that a spec's layers are of: its method's, or that with a magnitude over it.

    Raises:
        UserInputError: a magnitude is asked for over a method without a row norm.
    """
    method = adapter_type(spec.method)
    return magnitude_over(method) if spec.magnitude else method


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
