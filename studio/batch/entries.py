"""What a batch file says, before it is composed: settings with their lines, and the axes that runs are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import FileFormatError, StudioError, UserInputError, nearest
from studio import config
from studio.batch import marks
from studio.batch.marks import Marked
from studio.batch.subjects import Setting, subject_settings

_PARTS = ("name", "defaults", "runs", "grid")
_AXES = {"adapters": "adapter.method", "ranks": "adapter.rank", "seeds": "seed", "presets": "preset"}
"""Short names of grid axes; any other key of the schema is its own name."""
_SHOWN_BARE = ("adapter.method", "preset")


@dataclass(frozen=True)
class Mistake:
    """A sentence or two on one thing that is wrong, and its line in the file (0 where it has none)."""

    line: int
    text: str

    @classmethod
    def of(cls, error: StudioError | str, source: str | None = None) -> Mistake:
        """An error on one line of text; `source`, where it does not name one itself."""
        what, fix = (error, "") if isinstance(error, str) else (error.what, error.fix)
        place = f" (from {source})" if source else ""
        text = " ".join(f"{what.rstrip('.')}{place}. {fix}".split())
        _, _, number = text.partition(")")[0].rpartition(":")
        return cls(int(number) if number.isdigit() else 0, text)


@dataclass(frozen=True)
class Point:
    """One choice on one axis: its value in words, what a run's label says of it, what it sets, where it is written."""

    axis: str
    value: str
    label: str
    settings: tuple[Setting, ...]
    source: str


@dataclass
class Entries:
    """A batch file's contents."""

    name: str
    defaults: list[Setting] = field(default_factory=list[Setting])
    axes: list[list[Point]] = field(default_factory=list[list[Point]])
    mistakes: list[Mistake] = field(default_factory=list[Mistake])


def entries_of(target: Path) -> Entries:
    """Those of a file, or of a folder, of which each folder in it is a subject."""
    if target.is_dir():
        entries = Entries(target.absolute().name)
        reader = _Reader(target, entries)
        entries.axes.append(reader.subjects([Marked("*", 0)], str(target)))
        return entries
    content = marks.read(target)
    if content.mapping is None:
        raise FileFormatError(f"{target} holds no keys.", f"A batch file has {', '.join(_PARTS)}: see docs/batch.md.")
    entries = Entries(target.stem)
    _Reader(target, entries).read(content.mapping)
    return entries


class _Reader:
    """Reads the parts of one file; paths are relative to the file (or to the folder that is the batch)."""

    def __init__(self, target: Path, entries: Entries) -> None:
        self.entries, self.file = entries, target.name
        self.folder = target.absolute() if target.is_dir() else target.absolute().parent

    def read(self, parts: dict[str, Marked]) -> None:
        for key, part in parts.items():
            if key not in _PARTS:
                near = nearest(key, _PARTS)
                hint = f"Did you mean {near}?" if near else f"Known: {', '.join(_PARTS)}."
                self.refuse(part.line, f"There is no part {key} of a batch file.", hint)
        if name := parts.get("name"):
            self.entries.name = str(name.plain())
        if defaults := parts.get("defaults"):
            self.entries.defaults = self.settings(defaults, "defaults")
        if runs := parts.get("runs"):
            self.entries.axes.append([self.run(entry) for entry in runs.items])
        if grid := parts.get("grid"):
            if grid.mapping is None:
                self.refuse(grid.line, "grid must hold keys with lists of values.")
            self.entries.axes += [self.axis(key, values) for key, values in (grid.mapping or {}).items()]
        if not runs and not grid:
            self.refuse(1, "Neither runs nor grid says what to do.")

    def refuse(self, line: int, what: str, fix: str = "") -> None:
        self.entries.mistakes.append(Mistake.of(UserInputError(what, fix), self.source(line)))

    def source(self, line: int) -> str:
        return f"{self.file}:{line}" if line else self.file

    def settings(self, part: Marked, what: str) -> list[Setting]:
        """The keys of `defaults` or of a run; those of a subject named there come before the others."""
        if part.mapping is None:
            self.refuse(part.line, f"{what} must hold keys of the schema, such as steps: 300.")
            return []
        first, others = list[Setting](), list[Setting]()
        for key, value in part.leaves():
            if key == "subject":
                first = [s for point in self.subjects([value], self.source(value.line))[:1] for s in point.settings]
            else:
                others.append(self.setting(key, value))
        return first + others

    def setting(self, key: str, value: Marked) -> Setting:
        nested: dict[str, Any] = {}
        config.put(nested, key, value.plain())
        config.anchor_paths(nested, self.folder)
        return Setting(key, dict(config.leaves(nested)).get(key, value.plain()), self.source(value.line))

    def run(self, entry: Marked) -> Point:
        inner = dict(entry.mapping or {})
        name = inner.pop("name", None)
        settings = self.settings(Marked(inner, entry.line) if entry.mapping is not None else entry, "a run")
        words = {setting.key.rpartition(".")[2]: str(setting.value) for setting in settings}
        label = str(name.plain()) if name else f"{words.get('trigger', '')} {words.get('class_word', '')}".strip()
        return Point("run", label, label, tuple(settings), self.source(entry.line))

    def axis(self, name: str, values: Marked) -> list[Point]:
        if name == "subjects":
            return self.subjects(values.items, self.source(values.line))
        key = _AXES.get(name, name)
        points: list[Point] = []
        for value in values.items:
            setting = self.setting(key, value)
            points.append(
                Point(
                    _axis_name(key),
                    _text(setting.value),
                    _label(key, setting.value),
                    (setting,),
                    self.source(value.line),
                )
            )
        if not points:
            self.refuse(values.line, f"grid.{name} has no values.")
        return points

    def subjects(self, patterns: Sequence[Marked], source: str) -> list[Point]:
        """A point for each folder that the patterns name."""
        points: list[Point] = []
        for pattern in patterns:
            folders = list(self._folders(str(pattern.plain())))
            if not folders:
                self.refuse(pattern.line, f"There is no folder of pictures {pattern.plain()}.")
            for folder in folders:
                try:
                    settings = subject_settings(folder, self.source(pattern.line))
                    points.append(Point("subject", folder.name, folder.name, tuple(settings), source))
                except UserInputError as error:
                    self.entries.mistakes.append(Mistake.of(error, source))
                except FileFormatError as error:
                    self.entries.mistakes.append(Mistake.of(error))
        return points

    def _folders(self, pattern: str) -> Iterator[Path]:
        whole = self.folder / Path(pattern).expanduser()
        found = sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
        return (path for path in found if path.is_dir() and not path.name.startswith("."))


def _axis_name(key: str) -> str:
    return "adapter" if key == "adapter.method" else key.rpartition(".")[2].replace("_", " ")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(key: str, value: Any) -> str:
    return _text(value) if key in _SHOWN_BARE else f"{_axis_name(key)} {_text(value)}"
