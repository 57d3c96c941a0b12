"""pydantic's errors as sentences: which key, which value, where it came from, what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adapters.errors import UserInputError, nearest
from studio.schema import describe

_HINTS = {
    "data.folder": "Give the folder of pictures: studio train FOLDER …",
    "data.captions.trigger": "Give the word that will stand for your subject: --trigger sks",
}


def _literal(context: Mapping[str, Any], value: Any) -> str:
    allowed = str(context["expected"])
    options = [word.strip(" '") for word in allowed.replace(" or ", ",").split(",")]
    near = nearest(str(value), options)
    return f"allowed are {allowed}" + (f"; you may mean {near}" if near else "")


_RULES: dict[str, Callable[[Mapping[str, Any], Any], str]] = {
    "literal_error": _literal,
    "greater_than_equal": lambda context, _: f"it must be at least {context['ge']}",
    "greater_than": lambda context, _: f"it must be more than {context['gt']}",
    "less_than_equal": lambda context, _: f"it must be at most {context['le']}",
    "less_than": lambda context, _: f"it must be less than {context['lt']}",
    "value_error": lambda context, _: str(context["error"]),
}
_KINDS = {
    "int": "it must be a whole number",
    "float": "it must be a number",
    "bool": "it must be true or false",
    "string": "it must be a text",
    "tuple": "it must be a list",
    "list": "it must be a list",
    "dict": "it must hold keys and values",
}


def _sentence(key: str, error: Mapping[str, Any], source: str | None) -> str:
    kind = str(error["type"])
    if kind == "missing":
        return f"{key} is missing."
    value = error["input"]
    rule = _RULES.get(kind)
    if rule is not None:
        allowed = rule(cast("Mapping[str, Any]", error.get("ctx", {})), value)
    else:
        allowed = _KINDS.get(kind.partition("_")[0], str(error["msg"]))
    origin = f" (from {source})" if source else ""
    if isinstance(value, (str, int, float, bool)):
        return f"{key} is {value!r}{origin}: {allowed.rstrip('.?')}."
    return f"{key}{origin}: {allowed.rstrip('.')}."


@dataclass(frozen=True)
class Refusal:
    """What is wrong with one key; `source` is where its value came from, if it came from anywhere."""

    key: str
    sentence: str
    source: str | None


class RefusedError(UserInputError):
    """A configuration that does not validate, and each of its mistakes."""

    def __init__(self, what: str, fix: str = "", refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(what, fix)
        self.refusals = tuple(refusals)

    def with_those_of(self, other: RefusedError) -> RefusedError:
        """Both errors in one."""
        fix = "\n".join(filter(None, (self.fix, other.fix)))
        return RefusedError(f"{self.what}\n{other.what}", fix, self.refusals + other.refusals)


def refusal_of(
    error: ValidationError, fields: Mapping[str, FieldInfo], sources: Mapping[str, str], prefix: str = ""
) -> RefusedError:
    """The error to show for a configuration that does not validate; `prefix` is the group that was validated."""
    refusals: list[Refusal] = []
    hints: list[str] = []
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        key = ".".join([prefix, *path] if prefix else path) or "the configuration"
        # A list's item or a union's member is below the key that people write.
        while key not in fields and "." in key and not any(name.startswith(f"{key}.") for name in fields):
            key = key.rpartition(".")[0]
        source = sources.get(key)
        refusal = Refusal(key, _sentence(key, cast("Mapping[str, Any]", detail), source), source)
        if refusal not in refusals:
            refusals.append(refusal)
        hint = _hint(key, fields)
        if hint and hint not in hints:
            hints.append(hint)
    return RefusedError("\n".join(refusal.sentence for refusal in refusals), "\n".join(hints), refusals)


def _hint(key: str, fields: Mapping[str, FieldInfo]) -> str:
    if key in _HINTS:
        return _HINTS[key]
    if key not in fields:
        return ""
    known = describe(key, fields[key])
    return f"{key}: {known.meaning} (takes: {known.takes}; default: {known.default})"
