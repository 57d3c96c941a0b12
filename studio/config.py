"""Composes a run's configuration: defaults < preset < YAML file < --set < explicit flags, one schema for all.

Keys and their meaning live beside their owners (trainers, adapters); here they are only laid over each other,
checked by name, and every refusal is said in a sentence that names the key, its value and where it came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adapters.errors import FileFormatError, MissingError, UnknownNameError, UserInputError, nearest
from adapters.registry import adapter_type
from studio import schema
from studio.refusals import RefusedError, refusal_of
from trainers.config import TrainConfig

Values = dict[str, Any]
DEFAULT_METHOD = "lora"
DEFAULT_PRESET = "balanced"
_EMBEDDED_BELOW = 512
"""Native side in pixels below which a base is of the embedded size (SDXL's is 1024)."""


@dataclass(frozen=True)
class Layer:
    """Values from one source, nested as the schema is."""

    source: str
    values: Values
    optional: bool = False
    """A preset's adapter knobs are dropped where the chosen method does not have them."""


class Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number (YAML 1.1, and so PyYAML, wants 1.0e-4)."""


Loader.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """A YAML text as plain values; raises yaml.YAMLError."""
    return yaml.load(text, Loader=Loader)


def preset_names() -> list[str]:
    order = ["quick", "balanced", "best", "small-gpu", "low-memory", "b-lora"]
    found = {Path(entry.name).stem for entry in _presets().iterdir() if entry.name.endswith(".yaml")}
    return [name for name in order if name in found] + sorted(found - set(order))


def _presets() -> Any:
    return resources.files("studio").joinpath("presets")


def preset(name: str) -> Values:
    """A preset's file: `meaning`, and the values `common` to all bases, for `embedded` and for `sdxl`."""
    if name not in preset_names():
        raise UnknownNameError("preset", name, preset_names())
    return parse_yaml(_presets().joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def preset_layers(name: str, family: str) -> list[Layer]:
    content = preset(name)
    return [
        Layer(f"preset {name}", content.get(part) or {}, optional=True)
        for part in ("common", family)
        if content.get(part)
    ]


def family_of(base: str) -> str:
    """ "embedded" or "sdxl", from the name and, for a folder, from its UNet's size."""
    if base == "embedded":
        return "embedded"
    try:
        unet = json.loads((Path(base).expanduser() / "unet" / "config.json").read_text(encoding="utf-8"))
        return "embedded" if int(unet["sample_size"]) * 8 < _EMBEDDED_BELOW else "sdxl"
    except (OSError, ValueError, KeyError):
        return "sdxl"


def file_layer(path: Path) -> Layer:
    """A YAML file; paths in it are relative to the file."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"There is no configuration file {path}.", "Check --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise FileFormatError(f"{path} is not YAML: {detail}", "Mend the file; docs/config.md has the keys.") from error
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} holds no keys.", 'It should hold lines such as "steps: 500".')
    layer = Layer(path.name, cast("Values", values))
    anchor_paths(layer.values, path.absolute().parent)
    return layer


def anchor_paths(values: Values, folder: Path) -> None:
    """Relative paths mean what they mean where they are written: a run may be resumed from anywhere."""
    base = values.get("base")
    if isinstance(base, str) and base != "embedded" and (path := folder / Path(base).expanduser()).exists():
        values["base"] = str(path)
    for group in ("data", "prior"):
        section = values.get(group)
        if isinstance(section, dict) and isinstance(section.get("folder"), str):
            section["folder"] = str(folder / Path(section["folder"]).expanduser())


def set_layer(assignments: Sequence[str]) -> Layer:
    """--set key=value, the value read as YAML."""
    values: Values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserInputError(f'"--set {assignment}" is not key=value.', "Write it like --set adapter.rank=32.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            value = text
        put(values, key.strip(), value)
    anchor_paths(values, Path.cwd())
    return Layer("--set", values)


def put(values: Values, key: str, value: Any) -> None:
    """Set a dotted key, making the groups above it; a group given as one word (adapter=dora) is spelled out."""
    _group(values, key)[key.rpartition(".")[2]] = value


def _group(values: Values, key: str) -> Values:
    """The dict that holds the last part of a dotted key."""
    for group in key.split(".")[:-1]:
        inner = values.get(group)
        if not isinstance(inner, dict):
            inner = {"method": inner} if group == schema.ADAPTER_KEY and inner is not None else {}
            values[group] = inner
        values = cast("Values", inner)
    return values


def flags_layer(flags: Mapping[str, Any]) -> Layer:
    """Explicit flags by their dotted key; None is a flag that was not given."""
    values: Values = {}
    for key, value in flags.items():
        if value is not None:
            put(values, key, value)
    anchor_paths(values, Path.cwd())
    return Layer("the command line", values)


def leaves(values: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested dict; an empty dict is a value."""
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) and value:
            yield from leaves(cast("Values", value), path)
        else:
            yield path, value


def method_in(layers: Sequence[Layer]) -> str:
    """The adapter method that the last layer to name one names; raises UnknownNameError for an unknown one."""
    method: Any = DEFAULT_METHOD
    for layer in layers:
        adapter = layer.values.get(schema.ADAPTER_KEY)
        chosen = adapter.get("method") if isinstance(adapter, dict) else adapter
        method = method if chosen is None else chosen
    return adapter_type(str(method)).name


class UnknownKeyError(UnknownNameError):
    """A key that the schema does not have; names the nearest ones."""

    def __init__(self, key: str, source: str, fields: Iterable[str]) -> None:
        known = list(fields)
        # A bare or misplaced name ("rank") means the keys that end in it, which difflib alone would not see.
        near = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        near = near or [name for name in [nearest(key, known)] if name]
        where = "docs/config.md lists every key."
        fix = f"Did you mean {' or '.join(near)}? {where}" if near else where
        UserInputError.__init__(self, f"There is no key {key} (from {source}).", fix)
        self.nearest = near[0] if near else None


def check_key(key: str, fields: Mapping[str, FieldInfo], source: str) -> None:
    """UserInputError, with the nearest keys, where the schema has no such key."""
    if key in fields or any(key.startswith(f"{path}.") and schema.is_open(field) for path, field in fields.items()):
        return
    below = [path for path in fields if path.startswith(f"{key}.")]
    if not below:
        raise UnknownKeyError(key, source, fields)
    raise UserInputError(f"{key} (from {source}) is a group of keys, not a value.", f"Set one of {', '.join(below)}.")


def merge(layers: Sequence[Layer]) -> tuple[Values, dict[str, str]]:
    """The layers laid over each other, and where each dotted key's value came from."""
    method = method_in(layers)
    fields = dict(schema.walk(method))
    merged: Values = {}
    sources: dict[str, str] = {}
    for layer in layers:
        for key, value in leaves(layer.values):
            if key == schema.ADAPTER_KEY:
                key = f"{schema.ADAPTER_KEY}.method"
            if layer.optional and key.startswith(f"{schema.ADAPTER_KEY}.") and key not in fields:
                continue
            check_key(key, fields, layer.source)
            if isinstance(value, str) and key in fields and schema.takes_list(fields[key]):
                value = [value]
            put(merged, key, value)
            sources[key] = layer.source
    put(merged, f"{schema.ADAPTER_KEY}.method", method)
    for key, field in fields.items():
        if field.is_required():  # so that what is missing is named down to its key
            _group(merged, key)
    return merged, sources


def compose(layers: Sequence[Layer]) -> TrainConfig:
    """The configuration that the layers, first to last, make; UserInputError says what is wrong with which key."""
    merged, sources = merge(layers)
    fields = dict(schema.walk(method_in(layers)))
    refused: RefusedError | None = None
    try:
        spec_type = adapter_type(merged[schema.ADAPTER_KEY]["method"]).spec_type
        merged[schema.ADAPTER_KEY] = spec_type.model_validate(merged[schema.ADAPTER_KEY])
    except ValidationError as error:
        refused = refusal_of(error, fields, sources, prefix=schema.ADAPTER_KEY)
        del merged[schema.ADAPTER_KEY]
    try:
        whole = TrainConfig.model_validate(merged)
    except ValidationError as error:
        refusal = refusal_of(error, fields, sources)
        raise (refusal if refused is None else refused.with_those_of(refusal)) from error
    except UserInputError as error:  # parts that do not fit together: with a refused adapter that tells nothing
        raise (refused or error) from None
    if refused is not None:
        raise refused
    return whole


def to_yaml(config: TrainConfig, heading: str = "") -> str:
    """The whole configuration, every key spelled out: `--config` with this file runs the same run again."""
    lines = "".join(f"# {line}\n" for line in heading.splitlines())
    return lines + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
