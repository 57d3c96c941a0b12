"""Who works at the queue: finding out, starting somebody, and leaving without leaving a job behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from adapters.errors import StudioError, UserInputError
from studio import locks, workers
from studio.queue import Queue, Submission
from studio.stopping import Stop
from studio.store import TrainRequest
from studio.workers import Terms

_STUB = """#!{python}
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["PYTHONPATH"].split(os.pathsep)[0])
from studio import locks, workers
home = Path(os.environ["SPECTRAL_STUDIO_DATA"])
held = ((name, locks.hold(workers.lock_path(home, name))) for name in workers.devices())
device, lock = next((name, lock) for name, lock in held if lock is not None)
told = dict(arguments=sys.argv[1:], folder=os.getcwd(), session=os.getsid(0), pid=os.getpid())
(home / f"{{device}}.json").write_text(json.dumps(told))
print("here I am", flush=True)
time.sleep(60)
"""


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "home")


@pytest.fixture
def stub(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> Generator[Callable[[], list[dict[str, str]]]]:
    """Workers that take a device and do nothing; what they say of themselves."""
    program = tmp_path / "stub"
    program.write_text(_STUB.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(workers.sys, "executable", str(program))
    monkeypatch.setenv("SPECTRAL_STUDIO_STATE", str(tmp_path / "state"))

    def told() -> list[dict[str, str]]:
        deadline = time.monotonic() + 30
        while len(found := list(queue.home.glob("device-*.json"))) < len(workers.alive(queue.home)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return [json.loads(path.read_text()) for path in found]

    yield told
    for one in told():
        os.kill(int(one["pid"]), 9)


def submit(queue: Queue, count: int = 1) -> list[str]:
    config = {"base": "embedded", "adapter": {"method": "lora"}}
    return [queue.submit(Submission(request=TrainRequest(config=config), title="sks")) for _ in range(count)]


def gpus(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_a_worker_is_alive_as_long_as_it_holds_its_device(queue: Queue):
    assert workers.alive(queue.home) == []
    lock = locks.hold(workers.lock_path(queue.home, "device-0"))
    assert lock is not None and workers.alive(queue.home) == ["device-0"]
    lock.release()
    assert workers.alive(queue.home) == []


@pytest.mark.parametrize(
    ("visible", "names"), [("", ["device-0"]), ("3", ["device-3"]), ("1,0", ["device-1", "device-0"])]
)
def test_devices_go_by_what_they_are_and_not_by_their_place(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
):
    gpus(monkeypatch, visible)
    assert workers.devices() == names


def test_gpus_are_counted_by_nvidias_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --list-gpus ] && printf "GPU 0: A (UUID: x)\\nGPU 1: B (UUID: y)\\n"')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.devices() == ["device-0", "device-1"]


def test_a_worker_is_started_once_in_a_session_and_a_folder_of_its_own(
    queue: Queue, stub: Callable[[], list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
):
    gpus(monkeypatch, "")
    assert not workers.ensure(queue)
    submit(queue)
    assert workers.ensure(queue)
    assert not workers.ensure(queue)
    (told,) = stub()
    assert told["arguments"] == ["-m", "studio", "worker", "--idle", "600"]
    assert told["session"] == told["pid"] and told["folder"] == str(queue.home)
    (log,) = (workers.state_dir() / "logs").iterdir()
    assert log.read_text() == "here I am\n"


def test_as_many_workers_are_started_as_there_are_jobs_or_devices(
    queue: Queue, stub: Callable[[], list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
):
    gpus(monkeypatch, "0,1")
    submit(queue)
    workers.ensure(queue)
    assert len(workers.alive(queue.home)) == 1
    submit(queue, 5)
    workers.ensure(queue)
    assert workers.alive(queue.home) == ["device-0", "device-1"]
    assert not workers.ensure(queue)


def test_a_worker_that_does_not_start_is_told_with_its_log(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    submit(queue)
    with pytest.raises(StudioError, match=r"No worker has come to life; its log is .*\.log"):
        workers.ensure(queue)


def test_a_second_worker_for_a_device_is_refused(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    gpus(monkeypatch, "")
    lock = locks.hold(workers.lock_path(queue.home, "device-0"))
    assert lock is not None
    for gpu, words in ((None, "Every device has a worker"), (0, "GPU 0 has a worker")):
        with pytest.raises(UserInputError, match=words):
            workers.work(queue, Console(file=StringIO()), gpu)


class _Idle:
    """A worker that finds nothing to do; before it ends its n-th turn, something happens."""

    def __init__(self, before_end: list[Callable[[], object]]) -> None:
        self.before_end, self.turns = before_end, 0

    def serve(self) -> bool:
        self.before_end[self.turns]()
        self.turns += 1
        return True


def test_a_job_that_comes_while_its_worker_is_leaving_is_not_left_alone(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    """Whoever submitted it saw a living worker, and started none."""
    gpus(monkeypatch, "")

    def come() -> None:
        submit(queue)
        assert not workers.ensure(queue)

    idle = _Idle([come, lambda: queue.send(queue.list_jobs()[0].id, "cancel")])
    monkeypatch.setattr(workers, "_worker", lambda *_: idle)
    assert workers.work(queue, Console(file=StringIO()), None, Terms(idle=0))
    assert idle.turns == 2
    assert workers.alive(queue.home) == []


def test_a_worker_that_was_told_to_stop_leaves_the_jobs_that_wait(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    gpus(monkeypatch, "")
    submit(queue)
    monkeypatch.setattr(Stop, "asked", True)
    idle = _Idle([lambda: None])
    monkeypatch.setattr(workers, "_worker", lambda *_: idle)
    assert workers.work(queue, Console(file=StringIO()))
    assert idle.turns == 1


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from studio import locks; "
        "kept = locks.hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert locks.is_held(path) and locks.hold(path) is None
    process.kill()
    process.wait()
    assert not locks.is_held(path)
