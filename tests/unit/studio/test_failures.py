"""What a person reads when something goes wrong, and the exit codes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adapters.errors import DiskFullError, DivergedError, FileFormatError, MismatchError, MissingError, UserInputError
from studio.failures import explain


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UserInputError, 2),
        (MissingError, 3),
        (FileFormatError, 4),
        (DivergedError, 5),
        (DiskFullError, 6),
        (MismatchError, 7),
    ],
)
def test_errors_of_ours_keep_their_words_and_code(kind: type[UserInputError], code: int):
    failure = explain(kind("what", "fix"))
    assert (failure.what, failure.fix, failure.code) == ("what", "fix", code)


def test_a_full_disk_is_called_so():
    failure = explain(OSError(errno.ENOSPC, "No space left on device", "/out/x"))
    assert failure.code == 6 and "The disk is full (/out/x)" in failure.what


def test_a_folder_that_cannot_be_written_is_called_so():
    failure = explain(PermissionError(errno.EACCES, "Permission denied", "/out"))
    assert failure.code == 6 and "/out" in failure.what


def test_ctrl_c_ends_with_130():
    assert explain(KeyboardInterrupt()).code == 130


def test_a_fault_of_the_app_leaves_its_traceback_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPECTRAL_STUDIO_STATE", str(tmp_path))
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        failure = explain(error)
    (log,) = (tmp_path / "logs").iterdir()
    assert failure.code == 70
    assert "bug" in failure.what and "\n" not in failure.what and str(log) in failure.fix
    assert "Traceback" in log.read_text() and "ZeroDivisionError" in log.read_text()


def test_an_unwritable_log_still_tells_the_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SPECTRAL_STUDIO_STATE", "/dev/null/nowhere")
    assert explain(ValueError("x")).code == 70
    assert "ValueError" in capsys.readouterr().err
