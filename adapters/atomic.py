"""Writing a file so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import DiskFullError


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Generator[Path]:
    """Yields a temporary name in `path`'s folder; on success it is fsynced and renamed to `path`.

    On any failure the temporary file is removed and an existing `path` is left as it was. Not `durable`: without fsync,
    which takes tens of milliseconds on some disks; if the machine stops then, the file may be damaged.

    Raises:
        DiskFullError: the disk is full (ENOSPC) or the user's quota is (EDQUOT).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        _publish(part, target, durable=durable)
    except Exception as error:
        if _is_disk_full(error):
            raise DiskFullError(
                f"The disk is full: {target} could not be written.",
                f"Free some space in {target.parent} and try again; an older file of that name is untouched.",
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, target: Path, *, durable: bool) -> None:
    part.chmod(_mode_of_new_files(target))
    if durable:
        _fsync(part)
    part.replace(target)
    if durable and os.name == "posix":  # the rename is durable only once the folder is; Windows cannot open folders
        _fsync(target.parent)


def _mode_of_new_files(target: Path) -> int:
    """The mode an ordinary open() would give: mkstemp's 0600 would hide the file from other users."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_disk_full(error: BaseException) -> bool:
    """Looks at the text too: safetensors turns the OS error into a string."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)
