from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters.errors import StudioError, UserInputError
from studio import processes


@pytest.mark.parametrize(("asked", "together", "starts"), [(1, "1", False), (2, "1", True), (2, "2", False)])
def test_processes_are_started_only_where_they_are_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, asked: int, together: str, starts: bool
):
    monkeypatch.setenv("WORLD_SIZE", together)
    assert processes.to_be_started(asked) is starts


def test_a_number_of_gpus_that_contradicts_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserInputError, match="4 processes were started together, and --gpus says 2"):
        processes.to_be_started(2)


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserInputError, match="There are 2 GPUs, and --gpus says 3"):
        processes.launch(3, ["-c", "raise SystemExit(1)"])


@pytest.mark.parametrize("codes", [{0: 5}, {0: -signal.SIGTERM, 1: 5}, {0: 5, 1: -signal.SIGKILL}])
def test_the_exit_code_is_the_one_that_a_process_gave(codes: dict[int, int]):
    assert processes._code(codes) == 5


def test_a_process_that_was_killed_is_named():
    with pytest.raises(StudioError, match=r"Process 1 .* killed \(SIGKILL\)"):
        processes._code({0: -signal.SIGTERM, 1: -signal.SIGKILL})


def test_processes_get_their_places_and_the_command_the_code_of_the_one_that_failed(tmp_path: Path):
    each = (
        "import os, pathlib, sys; rank = os.environ['RANK'];"
        f"pathlib.Path({str(tmp_path)!r}, rank).write_text(os.environ['WORLD_SIZE']); sys.exit(7 if rank == '1' else 0)"
    )
    command = f"import sys; from studio.processes import launch; sys.exit(launch(2, ['-c', {each!r}]))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2", "1": "2"}
