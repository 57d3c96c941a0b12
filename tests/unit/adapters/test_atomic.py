"""A reader sees the old file or the new one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adapters.atomic import atomic_path
from adapters.errors import DiskFullError


def write_until(path: Path, failure: BaseException) -> None:
    with atomic_path(path) as part:
        part.write_text("half")
        raise failure


def test_the_new_content_replaces_the_old(tmp_path: Path):
    path = tmp_path / "deep" / "file"
    for content in ("old", "new"):
        with atomic_path(path) as part:
            part.write_text(content)
            assert part.parent == path.parent
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_a_failure_half_way_leaves_the_old_file_and_no_litter(tmp_path: Path, failure: BaseException):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(failure)):
        write_until(path, failure)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), RuntimeError("I/O error: No space left on device")],
    ids=repr,
)
def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path: Path, failure: Exception):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(DiskFullError, match="disk is full"):
        write_until(path, failure)
    assert path.read_text() == "old"


def test_other_errors_of_the_system_pass_through(tmp_path: Path):
    with pytest.raises(PermissionError):
        write_until(tmp_path / "file", PermissionError(errno.EACCES, "no"))


def test_the_file_has_the_mode_that_open_would_give(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "file") as part:
        part.write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
