"""The configuration's keys read off the schema itself: for checking, for error messages and for docs/config.md."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from adapters.registry import adapter_type
from trainers.config import TrainConfig

ADAPTER_KEY = "adapter"
Model = type[BaseModel]


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, what it takes, what it is when left out, and what it does."""

    name: str
    takes: str
    default: str
    meaning: str


def _unwrapped(annotation: Any) -> list[Any]:
    """The members of a union (without None), or the annotation itself; Annotated is looked through."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrapped(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def group_of(field: FieldInfo) -> Model | None:
    """The model behind a key that is a group of keys."""
    for member in _unwrapped(field.annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def fields_under(prefix: str, model: Model, method: str) -> Mapping[str, FieldInfo]:
    """The fields of the group at `prefix`: of `model`, but of the method's own spec for the adapter."""
    if prefix == ADAPTER_KEY:
        return adapter_type(method).spec_type.model_fields
    return model.model_fields


def walk(method: str, model: Model = TrainConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field, in the schema's order, the adapter's knobs being those of `method`."""
    for name, field in fields_under(prefix, model, method).items():
        path = f"{prefix}.{name}" if prefix else name
        group = group_of(field)
        if group is None:
            yield path, field
        else:
            yield from walk(method, group, path)


def is_open(field: FieldInfo) -> bool:
    """Whether any key may stand below it (a dict of options)."""
    return any(get_origin(member) is dict or member is dict for member in _unwrapped(field.annotation))


def takes_list(field: FieldInfo) -> bool:
    return any(get_origin(member) in (tuple, list) for member in _unwrapped(field.annotation))


_NAMES: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "any"}


def _type_text(annotation: Any) -> str:
    members = _unwrapped(annotation)
    if len(members) > 1:
        return " or ".join(dict.fromkeys(_type_text(member) for member in members))
    member = members[0]
    origin = get_origin(member)
    if origin is Literal:
        return ", ".join(str(value) for value in get_args(member))
    if origin in (tuple, list):
        inner = [part for part in get_args(member) if part is not Ellipsis]
        return "list of " + " and ".join(dict.fromkeys(_type_text(part) for part in inner))
    if origin is dict or member is dict:
        return "keys and values"
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "{" + ", ".join(member.model_fields) + "}"
    return _NAMES.get(member, getattr(member, "__name__", str(member)).lower())


def _bounds_text(field: FieldInfo) -> str:
    words = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}
    bounds = [
        f"{sign}{getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in words.items()
        if getattr(rule, name, None) is not None
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined or default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, list, dict)):
        parts = cast("list[Any]", list(default))
        return ", ".join(str(part) for part in parts) or "empty"
    return str(default) if default != "" else "empty"


def describe(name: str, field: FieldInfo) -> Key:
    takes = _type_text(field.annotation) + _bounds_text(field)
    return Key(name, takes, _default_text(field), field.description or "")


def all_keys(method: str = "lora") -> list[Key]:
    """All settings of a run whose adapter is of `method`."""
    return [describe(path, field) for path, field in walk(method)]
