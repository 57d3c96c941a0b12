"""YAML whose values know their lines, so that a mistake can be pointed at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from adapters.errors import FileFormatError, MissingError
from studio.config import Loader


@dataclass(frozen=True)
class Marked:
    """A value and the line that it (of a key: that the key) stands in: a dict or a list of Marked, or a plain value."""

    value: Any
    line: int

    @property
    def mapping(self) -> dict[str, Marked] | None:
        return cast("dict[str, Marked]", self.value) if isinstance(self.value, dict) else None

    @property
    def items(self) -> list[Marked]:
        """Of a list its items; anything else is a list of itself."""
        return cast("list[Marked]", self.value) if isinstance(self.value, list) else [self]

    def plain(self) -> Any:
        """The value without lines."""
        if (mapping := self.mapping) is not None:
            return {key: inner.plain() for key, inner in mapping.items()}
        return [inner.plain() for inner in self.items] if isinstance(self.value, list) else self.value

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Marked]]:
        """Dotted keys and what they hold; lists and empty groups are values."""
        for name, inner in (self.mapping or {}).items():
            key = f"{prefix}.{name}" if prefix else name
            if inner.mapping:
                yield from inner.leaves(key)
            else:
                yield key, inner


def read(path: Path) -> Marked:
    """A YAML file. MissingError where there is none, FileFormatError where it is not YAML or says a key twice."""
    try:
        loader = Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        return Marked(None, 1) if node is None else _marked(loader, node, path, 1)
    except FileNotFoundError as error:
        raise MissingError(f"There is no file {path}.", "Check its name.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise FileFormatError(f"{path} is not YAML: {detail}", "Mend the file; docs/batch.md has examples.") from error


def _marked(loader: Loader, node: yaml.Node, path: Path, line: int) -> Marked:
    if isinstance(node, yaml.MappingNode):
        own = [(key, value) for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"]
        _refuse_twice(own, path)
        loader.flatten_mapping(node)
        inner: dict[str, Marked] = {}
        for key, value in node.value:  # what is merged in by << comes first
            inner[str(key.value)] = _marked(loader, value, path, key.start_mark.line + 1)
        return Marked(inner, line)
    if isinstance(node, yaml.SequenceNode):
        return Marked([_marked(loader, item, path, item.start_mark.line + 1) for item in node.value], line)
    return Marked(loader.construct_object(node), line)


def _refuse_twice(pairs: list[tuple[yaml.Node, yaml.Node]], path: Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in pairs:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise FileFormatError(
                f"{path.name} says {key.value} twice, in lines {seen[key.value]} and {line}.", "Keep one of them."
            )
        seen[str(key.value)] = line
