"""sha256 of large files, remembered by size and time so that a checkpoint of 7 GB is read once, not at every start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from adapters.atomic import atomic_path
from adapters.digest import file_sha256
from adapters.errors import StudioError
from trainers.cache import default_root

_MEMORY = "file-hashes.json"


def files_hash(files: Sequence[Path]) -> str:
    """One sha256 (hex) over the contents of files, in the order given; names and folders do not count."""
    return hashlib.sha256("".join(file_hash(path) for path in files).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file; remembered in the cache folder until its size or modification time changes."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    memory = default_root() / _MEMORY
    known = _read(memory)
    if key not in known:
        known[key] = file_sha256(path)
        with suppress(OSError, StudioError), atomic_path(memory) as temporary:
            temporary.write_text(json.dumps(known, indent=0))
    return known[key]


def _read(memory: Path) -> dict[str, str]:
    try:
        return dict(json.loads(memory.read_text()))
    except (OSError, ValueError):
        return {}
