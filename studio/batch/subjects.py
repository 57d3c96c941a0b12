"""A subject is a folder of pictures, with its words in a subject.yaml or in the folder's name.

subject.yaml: `trigger`, `class`, and any key of the schema. Without a trigger there, the folder's name says it: its
first word (words end at a space, - or _) is the trigger and the rest the class, "zwx-dog" or "zwx clay dog"; a single
word is the trigger alone. kohya's "10_zwx dog" shows each picture ten times, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import FileFormatError
from studio.batch import marks

FILE = "subject.yaml"
_SHORT = {"trigger": "data.captions.trigger", "class": "data.captions.class_word"}


@dataclass(frozen=True)
class Setting:
    """A dotted key's value, and the file and line that say so."""

    key: str
    value: Any
    source: str


def subject_settings(folder: Path, source: str) -> list[Setting]:
    """What the folder decides of a run; `source` is where the folder was named."""
    said = [Setting("data.folder", str(folder.absolute()), source)]
    path = folder / FILE
    if path.exists():
        found = marks.read(path)
        if found.mapping is None:
            raise FileFormatError(f"{path} holds no keys.", 'It should hold lines such as "trigger: zwx".')
        said += [
            Setting(_SHORT.get(key, key), value.plain(), f"{folder.name}/{FILE}:{value.line}")
            for key, value in found.leaves()
        ]
    if not any(setting.key == _SHORT["trigger"] for setting in said):
        said[1:1] = _from_name(folder)
    return said


def _from_name(folder: Path) -> list[Setting]:
    name, source = folder.absolute().name, f"the name of {folder.name}/"
    said: list[Setting] = []
    if match := re.fullmatch(r"(\d+)_(.+)", name):
        said.append(Setting("data.repeats", int(match[1]), source))
        name = match[2]
    words = [word for word in re.split(r"[\s_-]+", name) if word]
    said.append(Setting(_SHORT["trigger"], words[0] if words else name, source))
    if len(words) > 1:
        said.append(Setting(_SHORT["class"], " ".join(words[1:]), source))
    return said
