"""A run of a batch through its storage: what goes there, and how another machine goes on with it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from studio import __version__
from studio.batch import remote
from studio.batch.plan import Plan, PlannedRun
from studio.batch.record import BatchRecord, RunStatus, read_status, write_record
from studio.batch.remote import RemoteTrainer, send_inputs
from studio.batch.report import write_report
from studio.batch.storage import Storage
from studio.runs import RunFolder
from tests.support import adapter_tensors, make_pictures, quick_config
from tests.support import run as train_here
from trainers.bases import BaseKeeper
from trainers.events import Event, Stepped


class Killed(BaseException):
    """What nothing in the run catches: the machine is gone."""


KEEPER = BaseKeeper()


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """In memory, or where a test asks for it a folder."""
    place = getattr(request, "param", "memory")
    return Storage(str(tmp_path / "out") if place == "file" else f"memory://{uuid.uuid4()}")


def start(storage: Storage, pictures: Path, **changes: object) -> BatchRecord:
    plan = Plan(Path("x.yaml"), "x", (PlannedRun("one", {}, quick_config(pictures, **changes)),))
    return write_record(storage, plan, "x-1")


def do(storage: Storage, record: BatchRecord) -> RunStatus:
    run = record.runs[0]
    trainer = RemoteTrainer(storage.url, __version__, "cpu", "here")
    trainer.keeper = KEEPER  # as if all were one process
    return trainer.do(run, send_inputs(storage, record.runs))


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    whole = RunFolder.record

    def dying(self: RunFolder, events: Iterator[Event]) -> Iterator[Event]:
        for event in whole(self, events):
            yield event
            if isinstance(event, Stepped) and event.step == step:
                raise Killed

    monkeypatch.setattr(RunFolder, "record", dying)


@pytest.mark.parametrize("storage", ["file", "memory"], indirect=True)
def test_a_run_whose_machine_dies_goes_on_from_the_storage_to_the_very_same_adapter(
    storage: Storage, pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = start(storage, pictures, save_every=2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 3)
        do(storage, record)
    folder = record.runs[0].folder
    assert storage.names(f"{folder}/checkpoints") == ["step-000002.safetensors"]

    steps: list[int] = []
    whole = RunFolder.record

    def watching(self: RunFolder, events: Iterator[Event]) -> Iterator[Event]:
        for event in whole(self, events):
            steps.extend([event.step] if isinstance(event, Stepped) else [])
            yield event

    monkeypatch.setattr(RunFolder, "record", watching)
    status = do(storage, record)
    assert (status.state, status.attempts, steps) == ("done", 2, [3, 4])
    assert storage.names(f"{folder}/checkpoints") == []
    made = tmp_path / "made.safetensors"
    storage.download(f"{folder}/adapter.safetensors", made)
    train_here(quick_config(pictures), tmp_path / "reference", cache)
    wanted = adapter_tensors(tmp_path / "reference" / "adapter.safetensors")
    assert all(tensor.equal(wanted[name]) for name, tensor in adapter_tensors(made).items())


def test_a_finished_run_leaves_all_its_files_and_its_report_in_the_storage(storage: Storage, pictures: Path):
    record = start(storage, pictures, sample={"count": 1, "inference_steps": 1})
    status = do(storage, record)
    folder = record.runs[0].folder
    assert storage.names(folder) == ["adapter.safetensors", "config.yaml", "events.jsonl", "status.json"]
    assert storage.names(f"{folder}/samples") == ["step-000004.png"]
    assert f"folder: {pictures}" in (storage.read(f"{folder}/config.yaml") or b"").decode()
    write_report(storage, record, {record.runs[0].digest: status})
    assert b"data:image/webp;base64," in (storage.read("report.html") or b"")


def test_a_run_that_fails_says_why_in_the_storage(storage: Storage, tmp_path: Path):
    pictures = make_pictures(tmp_path / "pictures")
    record = start(storage, pictures, steps=30, optim={"name": "SGD", "learning_rate": 1e30, "max_grad_norm": 0})
    do(storage, record)
    status = read_status(storage, record.runs[0])
    assert status is not None and status.state == "failed"
    assert status.failure is not None and "no longer a number" in status.failure.what


def test_a_checkpoint_that_does_not_fit_this_machine_is_left_behind(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pictures = make_pictures(tmp_path / "pictures")
    record = start(storage, pictures, save_every=2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 3)
        do(storage, record)
    make_pictures(pictures, count=4)  # as if class pictures had come out differently here
    assert do(storage, record).state == "done"


def test_pictures_are_sent_once_for_each_content(storage: Storage, tmp_path: Path):
    pictures = make_pictures(tmp_path / "pictures")
    record = start(storage, pictures)
    first = send_inputs(storage, record.runs)
    assert send_inputs(storage, record.runs) == first
    make_pictures(pictures, count=4)
    second = send_inputs(storage, record.runs)
    assert second != first and len(storage.names(second[str(pictures)])) == 4


def test_class_pictures_that_one_machine_has_made_are_used_by_the_next(
    storage: Storage, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prior = {"weight": 0.5, "pictures": 2}
    drawing = {"count": 0, "inference_steps": 1}
    monkeypatch.setenv("SPECTRAL_STUDIO_CACHE", str(tmp_path / "first"))
    do(storage, start(storage, pictures, prior=prior, sample=drawing))
    monkeypatch.setenv("SPECTRAL_STUDIO_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(remote, "_send_class_pictures", lambda *_: None)
    marks = {path.name: path.read_bytes() for path in (tmp_path / "first").rglob("class-pictures/*/*.png")}
    monkeypatch.setattr("trainers.dreambooth.generate", lambda *_, **__: iter(()))  # nobody draws any more
    assert do(storage, start(storage, pictures, prior=prior, sample=drawing, seed=1)).state == "done"
    found = {path.name: path.read_bytes() for path in (tmp_path / "second").rglob("class-pictures/*/*.png")}
    assert len(marks) == 2 and found == marks


def test_a_place_that_no_package_reaches_is_refused_with_the_package():
    for url, word in (("nowhere://x", "nowhere"), ("s3://bucket/x", "s3fs")):
        if word == "s3fs" and "s3fs" in fsspec.available_protocols():
            continue
        with pytest.raises(Exception, match=word) as error:
            Storage(url)
        assert type(error.value).__module__ == "adapters.errors"
