"""The commands of the queue, end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from adapters.files import load_adapter
from studio import cli_jobs, training, workers
from studio.cli import app
from studio.config import to_yaml
from studio.queue import Queue
from tests.jobs import submit as put
from tests.jobs import work
from tests.support import BASE, adapter_tensors, quick_config

FLAGS = ["--trigger", "sks", "--class", "octopus", "--base", BASE, "--preset", "quick", "--set", "sample.count=0"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECTRAL_STUDIO_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def queue(home: Path) -> Queue:
    return Queue()


@pytest.fixture
def three(queue: Queue, pictures: Path) -> list[str]:
    return [put(queue, quick_config(pictures)) for _ in range(3)]


def studio(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: str | Path) -> str:
    result = studio(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def options(name: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    return {str(p.opts): (p.help, p.metavar, p.default) for p in command.commands[name].params}


def test_submit_takes_the_flags_of_train():
    train, submit = options("train"), options("submit")
    assert submit.pop("['--worker']") and train.pop("['--gpus']")  # a worker has one device
    assert train.pop("['--library']")  # a job's adapter is there anyway
    assert train.pop("['--out']")[1:] == submit.pop("['--out']")[1:]
    assert submit == train


def test_a_submitted_job_is_what_train_would_have_run(queue: Queue, pictures: Path):
    id = told("submit", pictures, *FLAGS, "--steps", "7", "--set", "adapter.rank=3", "--no-worker")
    flags = {"data.folder": str(pictures), "data.captions.trigger": "sks", "data.captions.class_word": "octopus"}
    request = training.Request(
        {**flags, "base": BASE, "steps": 7}, preset="quick", assignments=["sample.count=0", "adapter.rank=3"]
    )
    job = queue.get_job(id)
    assert job.config == training.configure(request).model_dump(mode="json")
    assert (job.state, job.title) == ("queued", "sks octopus")


def test_paths_in_a_job_do_not_depend_on_where_the_worker_is(
    queue: Queue, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(pictures.parent)
    job = queue.get_job(told("submit", pictures.name, *FLAGS, "--out", "out", "--no-worker"))
    assert job.config["data"]["folder"] == str(pictures)
    assert job.run == pictures.parent / "out"


def test_what_train_refuses_is_refused_before_it_waits(queue: Queue, pictures: Path, tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "adapter.safetensors").touch()
    for more in (["--set", "optim.learning_rat=1"], ["--adapter", "lroa"], ["--out", tmp_path / "old"]):
        refused = studio("submit", pictures, *FLAGS, *more, "--no-worker")
        assert refused.exit_code == 2
        assert refused.stderr == studio("train", pictures, *FLAGS, *more).stderr
    (tmp_path / "old" / "1.png").write_bytes(b"no picture")
    for folder, sentence in ((tmp_path / "none", "There is no folder"), (tmp_path / "old", "1.png")):
        refused = studio("submit", folder, *FLAGS, "--no-worker")
        assert refused.exit_code != 0 and sentence in refused.stderr
    assert queue.list_jobs() == []


def test_a_finished_run_is_trained_further_as_a_job(queue: Queue, pictures: Path, tmp_path: Path):
    out = tmp_path / "run"
    first = put(queue, quick_config(pictures, steps=2), out)
    work(queue)
    again = told("submit", "--resume", "--out", out, "--steps", "3", "--no-worker")
    work(queue)
    assert [queue.get_job(id).state for id in (first, again)] == ["done", "done"]
    assert load_adapter(out / "adapter.safetensors").card.steps == 3


def test_the_list_tells_the_queue_in_its_order_and_then_what_is_over(queue: Queue, three: list[str]):
    queue.send(three[0], "cancel")
    listed = studio("jobs", "list")
    assert "No worker is alive" in listed.stderr
    lines = listed.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [three[1], "queued"],
        [three[2], "queued"],
        [three[0], "cancelled"],
    ]
    assert [job["id"] for job in json.loads(told("jobs", "list", "--json"))] == [three[1], three[2], three[0]]


def test_an_empty_queue_is_called_so():
    assert told("jobs", "list") == "The queue is empty."


def test_jobs_are_steered_from_the_command_line(queue: Queue, three: list[str]):
    assert told("jobs", "pause", three[0]) == "paused"
    assert told("jobs", "resume", three[0], "--no-worker") == "queued"
    assert told("jobs", "cancel", three[1]) == "cancelled"
    assert told("jobs", "retry", three[1], "--no-worker") == three[1]
    assert [line.split()[0] for line in told("jobs", "reorder", three[1], "1").splitlines()[1:]] == [
        three[1],
        three[0],
        three[2],
    ]
    refused = studio("jobs", "save", three[0])
    assert refused.exit_code == 2 and "Only a running job can save." in refused.stderr
    missing = studio("jobs", "show", "nothing")
    assert missing.exit_code == 3 and "studio jobs list" in missing.stderr


def test_a_job_is_shown_with_its_folder_and_its_failure(queue: Queue, pictures: Path):
    bad = quick_config(pictures, steps=30, optim={"name": "SGD", "learning_rate": 1e30, "max_grad_norm": 0})
    id = put(queue, bad)
    work(queue)
    shown = told("jobs", "show", id)
    assert f"folder: {queue.home / 'runs' / id}" in shown and "no longer a number" in shown
    failed = studio("jobs", "follow", id)
    assert failed.exit_code == 5 and failed.stdout.strip() == "failed" and "no longer a number" in failed.stderr


def test_trying_again_with_other_settings_makes_a_job_of_them(queue: Queue, three: list[str]):
    queue.send(three[0], "cancel")
    new = told("jobs", "retry", three[0], "--preset", "low-memory", "--set", "steps=2", "--no-worker")
    config = queue.get_job(new).config
    assert new != three[0] and config["gradient_checkpointing"] and config["steps"] == 2


def test_following_shows_what_was_and_ends_with_the_job(queue: Queue, pictures: Path):
    id = put(queue, quick_config(pictures))
    work(queue)
    followed = studio("jobs", "follow", id)
    assert followed.exit_code == 0 and followed.stdout.strip() == "done"
    assert "Training" in followed.stderr and "Done after 4 steps" in followed.stderr


def test_a_dead_workers_job_is_listed_as_interrupted(queue: Queue, three: list[str]):
    from studio.claims import claim_next

    claim = claim_next(queue, "device-0")
    assert claim is not None
    claim.lock.release()
    assert told("jobs", "list").splitlines()[1].split()[1] == "interrupted"


def test_a_worker_whose_device_is_gone_gives_way_to_a_new_process(monkeypatch: pytest.MonkeyPatch):
    begun: list[list[str]] = []
    monkeypatch.setattr(workers, "work", lambda *_: False)
    monkeypatch.setattr(cli_jobs.os, "execv", lambda _, arguments: begun.append(arguments))
    monkeypatch.setattr(cli_jobs.sys, "argv", ["studio", "worker", "--gpu", "0"])
    told("worker", "--gpu", "0")
    assert begun == [[sys.executable, "-m", "studio", "worker", "--gpu", "0"]]


def test_the_help_reads_neither_torch_nor_the_database():
    code = (
        "import sys\nfrom studio.cli import app\n"
        "try:\n    app(['jobs', '--help'])\nfinally:\n"
        "    print([name for name in ('torch', 'sqlalchemy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def _wait(queue: Queue, id: str, step: int) -> None:
    deadline = time.monotonic() + 180
    while queue.get_job(id).progress.step < step:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_submit_starts_a_worker_that_may_be_killed_with_its_whole_group(queue: Queue, pictures: Path, tmp_path: Path):
    """The real processes: submit, its worker, kill -9 of the group, another worker, the same adapter."""
    file = tmp_path / "job.yaml"
    file.write_text(to_yaml(quick_config(pictures, steps=40, save_every=5)))
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli_jobs.__file__).parents[1])}
    command = [sys.executable, "-m", "studio"]

    def call(*arguments: str | Path) -> str:
        done = subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    call("train", "--config", file, "--out", reference)
    id = call("submit", "--config", file, "--out", killed)
    _wait(queue, id, 8)
    group = _worker_of(queue.home)
    os.killpg(group, signal.SIGKILL)
    assert call("jobs", "list").splitlines()[1].split()[:2] == [id, "interrupted"]
    call("worker", "--until-empty")
    assert (queue.get_job(id).state, queue.get_job(id).attempts) == ("done", 2)
    first, second = (adapter_tensors(out / "adapter.safetensors") for out in (reference, killed))
    assert all(first[name].equal(second[name]) for name in first)


def _worker_of(home: Path) -> int:
    """The process that works for that home, from what the kernel tells of it."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SPECTRAL_STUDIO_DATA={home}\0" in (entry / "environ").read_text() and b"worker" in (
                entry / "cmdline"
            ).read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("there is no worker")
