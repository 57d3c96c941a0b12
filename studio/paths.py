"""Names and places of what belongs to no run. (The cache of encoded pictures is trainers.cache's.)"""

from __future__ import annotations

import os
import re
from pathlib import Path

LIBRARY_PREFIX = "lib:"
"""How an adapter of the library is named where a path could stand: lib:ID."""


def state_dir() -> Path:
    """Logs: $SPECTRAL_STUDIO_STATE, or spectral-studio in $XDG_STATE_HOME (~/.local/state)."""
    if chosen := os.environ.get("SPECTRAL_STUDIO_STATE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "spectral-studio"


def data_dir() -> Path:
    """Jobs and the library: $SPECTRAL_STUDIO_DATA, or spectral-studio in $XDG_DATA_HOME (~/.local/share)."""
    if chosen := os.environ.get("SPECTRAL_STUDIO_DATA"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "spectral-studio"


def slug(text: str, limit: int = 40) -> str:
    """A file name from a text: lower case letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:limit].strip("-") or "untitled"


def picture_name(number: int) -> str:
    """Of the picture of that number, in the folder of a job that draws some."""
    return f"pictures/{number:04d}.png"


def next_free(parent: Path, stem: str) -> Path:
    """`parent/stem-<n>` with n one more than the largest there is."""
    return parent / f"{stem}-{max(numbered(parent, stem), default=0) + 1}"


def numbered(parent: Path, stem: str) -> list[int]:
    """The numbers n of the folders `parent/stem-<n>`."""
    pattern = re.compile(re.escape(stem) + r"-(\d+)$")
    if not parent.is_dir():
        return []
    return sorted(int(match[1]) for path in parent.iterdir() if (match := pattern.match(path.name)))


def existing_parent(path: Path) -> Path:
    """The nearest folder above (or at) `path` that exists: the one whose disk it will be on."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path
