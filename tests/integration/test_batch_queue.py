"""`studio batch` through the queue: what is queued, what running it again does, what its report tells."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import MissingError, UserInputError
from studio.batch import local
from studio.batch.plan import Plan, plan
from studio.batch.report import write_report
from studio.cli import app
from studio.queue import Queue
from tests.jobs import work
from tests.support import make_pictures

_FILE = """\
defaults: {preset: quick, steps: 4, prior.weight: 0, sample: {count: 1, inference_steps: 1}, validation_levels: 1}
grid: {subjects: zwx-shell, optim.name: [SGD], optim.learning_rate: [1e-3, 1e30], optim.max_grad_norm: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    make_pictures(folder / "zwx-shell")
    (folder / "b.yaml").write_text(_FILE)
    return folder


@pytest.fixture
def planned(folder: Path) -> Plan:
    return plan(folder / "b.yaml")


def test_a_batch_is_done_and_told_and_run_again_only_what_is_missing_is_done(planned: Plan, tmp_path: Path):
    queue, said = Queue(tmp_path), list[str]()
    id, storage = local.open_storage(queue, planned, None)
    record = local.start(planned, queue, id, storage)
    work(queue)
    local.follow(queue, record, said.append, start_worker=False)
    assert len(said) == 2 and said[0].startswith("[2/2] zwx-shell · name SGD · learning rate 0.001")
    states = {status.state for status in local.statuses(queue, record).values()}
    assert states == {"done", "failed"}

    page = Path(write_report(storage, record, local.statuses(queue, record)))
    html = page.read_text()
    assert html.count("data:image/webp;base64,") == 1 and "<polyline" in html
    assert "The loss is no longer a number" in html and "studio jobs retry" in html
    assert "http://" not in html and "https://" not in html
    done, failed = csv.DictReader(io.StringIO((page.parent / "report.csv").read_text()))
    assert (done["state"], done["steps"], failed["state"]) == ("done", "4", "failed")
    assert Path(done["adapter"]).is_file() and float(done["held_out_loss"]) > 0
    assert done["command"] == f"studio train --config {storage.place(record.runs[0].config_file)}"

    local.start(planned, queue, id, storage)
    waiting = queue.list_jobs(("queued",))
    assert [job.title for job in waiting] == [record.runs[1].label] and len(queue.list_jobs()) == 2


def test_the_command_that_a_report_gives_is_the_same_run(planned: Plan, tmp_path: Path):
    from studio.config import compose, file_layer

    queue = Queue(tmp_path)
    id, storage = local.open_storage(queue, planned, None)
    record = local.start(planned, queue, id, storage)
    for run, one in zip(planned.runs, record.runs, strict=True):
        assert compose([file_layer(Path(storage.place(one.config_file)))]) == run.config


def test_a_batch_is_found_by_its_id_by_its_beginning_and_by_its_folder(planned: Plan, tmp_path: Path):
    queue = Queue(tmp_path / "home")
    id, storage = local.open_storage(queue, planned, str(tmp_path / "out"))
    local.start(planned, queue, id, storage)
    for which in (id, id[:3], str(tmp_path / "out")):
        found, record = local.find(queue, which)
        assert (found.url, record.id) == (str(tmp_path / "out"), id)
    with pytest.raises(MissingError, match="There is no batch in"):
        local.find(queue, "zzz")


def test_a_paused_run_goes_on_when_the_batch_is_run_again(planned: Plan, tmp_path: Path):
    queue = Queue(tmp_path)
    id, storage = local.open_storage(queue, planned, None)
    record = local.start(planned, queue, id, storage)
    job = local.jobs_of(queue, record)[0]
    queue.send(job.id, "pause")
    local.start(planned, queue, id, storage)
    assert queue.get_job(job.id).state == "queued"


def test_an_url_is_refused_without_a_cluster(planned: Plan, tmp_path: Path):
    with pytest.raises(UserInputError, match="lie on this machine"):
        local.open_storage(Queue(tmp_path), planned, "memory://x")


def test_the_command_queues_and_reports(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPECTRAL_STUDIO_DATA", str(tmp_path))
    said = CliRunner().invoke(app, ["batch", str(folder / "b.yaml"), "--no-wait", "--no-worker"])
    assert said.exit_code == 0, said.output
    id = said.stdout.strip().splitlines()[-1]
    assert len(Queue(tmp_path).list_jobs(batch=id)) == 2
    told = CliRunner().invoke(app, ["batch", "report", id])
    assert told.exit_code == 0 and Path(told.stdout.strip()).is_file()


def test_a_batch_with_mistakes_queues_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPECTRAL_STUDIO_DATA", str(tmp_path))
    (folder / "bad.yaml").write_text("grid: {subjects: zwx-shell, steps: [3, x]}\n")
    said = CliRunner().invoke(app, ["batch", str(folder / "bad.yaml"), "--no-worker"])
    assert said.exit_code == 2 and "steps is 'x' (from bad.yaml:1): it must be a whole number." in said.output
    assert not (tmp_path / "studio.db").exists()
