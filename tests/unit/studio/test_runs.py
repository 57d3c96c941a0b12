"""A run's folder: what it refuses, what it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import MissingError, UserInputError
from studio import config, paths, runs
from studio.runs import RunFolder, open_run
from trainers.config import TrainConfig
from trainers.events import Note


@pytest.fixture
def whole() -> TrainConfig:
    return config.compose([config.flags_layer({"data.folder": "/pictures", "data.captions.trigger": "sks"})])


def test_the_folder_holds_the_configuration_that_was_run(tmp_path: Path, whole: TrainConfig):
    run = RunFolder(tmp_path)
    run.write_config(whole, "made by a test")
    assert run.config.read_text().startswith("# made by a test\n")
    assert config.compose([config.file_layer(run.config)]) == whole


def test_two_processes_do_not_share_a_folder(tmp_path: Path, whole: TrainConfig):
    with (
        open_run(tmp_path, whole, resume=False),
        pytest.raises(UserInputError, match="Another process"),
        open_run(tmp_path, whole, resume=True),
    ):
        pass


def test_the_lock_ends_with_the_run(tmp_path: Path, whole: TrainConfig):
    for _ in range(2):
        with open_run(tmp_path, whole, resume=False):
            pass


def test_a_finished_run_is_not_overwritten(tmp_path: Path, whole: TrainConfig):
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(UserInputError, match="finished run"), open_run(tmp_path, whole, resume=False):
        pass
    with open_run(tmp_path, whole, resume=True):
        pass


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path, whole: TrainConfig):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000007.safetensors").touch()
    with pytest.raises(UserInputError, match="unfinished run"), open_run(tmp_path, whole, resume=False):
        pass


def test_the_folder_of_the_pictures_is_refused(tmp_path: Path):
    same = config.compose([config.flags_layer({"data.folder": str(tmp_path), "data.captions.trigger": "sks"})])
    with pytest.raises(UserInputError, match="pictures"), open_run(tmp_path, same, resume=False):
        pass


def test_events_are_written_before_they_are_passed_on(tmp_path: Path):
    run = RunFolder(tmp_path)
    for event in run.record([Note(text="one"), Note(text="zwei ü")]):
        assert list(run.read_events())[-1] == event


def test_recording_again_appends(tmp_path: Path):
    run = RunFolder(tmp_path)
    for text in ("one", "two"):
        list(run.record([Note(text=text)]))
    assert list(run.read_events()) == [Note(text="one"), Note(text="two")]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path):
    run = RunFolder(tmp_path)
    list(run.record([Note(text="one")]))
    with run.events.open("a") as file:
        file.write('{"kind":"no')
    assert list(run.read_events()) == [Note(text="one")]
    list(run.record([Note(text="two")]))
    assert list(run.read_events()) == [Note(text="one"), Note(text="two")]


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert runs.default_out("sks", "dog") == Path("runs/sks-dog-1")
    for number in (2, 10):
        (tmp_path / f"runs/sks-dog-{number}").mkdir(parents=True)
    assert runs.default_out("sks", "dog") == Path("runs/sks-dog-11")
    assert runs.latest_out("sks", "dog") == Path("runs/sks-dog-10")


def test_resuming_without_any_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError):
        runs.latest_out("sks", "dog")


@pytest.mark.parametrize(
    ("text", "name"), [("a photo of a Dog!", "a-photo-of-a-dog"), ("../..", "untitled"), ("x" * 99, "x" * 40)]
)
def test_a_slug_is_a_safe_file_name(text: str, name: str):
    assert paths.slug(text) == name
