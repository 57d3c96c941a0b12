"""Everything a person can get wrong: what is said, with which exit code, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from studio.cli import app
from tests.support import BASE, make_pictures

FAST = ["--preset", "quick", "--base", BASE, "--steps", "1", "--set", "sample.count=0", "--set", "data.crop_variants=1"]


def studio(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(code: int, *arguments: str | Path) -> str:
    result = studio(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and "bug" not in result.output
    return result.stderr


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "pictures", count=1)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def train(code: int, pictures: Path, out: Path, *more: str | Path) -> str:
    return refused(code, "train", pictures, "--trigger", "sks", "--class", "octopus", *FAST, "--out", out, *more)


def test_a_folder_that_is_not_there(tmp_path: Path, out: Path):
    assert "There is no folder" in train(2, tmp_path / "none", out)


def test_a_folder_without_pictures(tmp_path: Path, out: Path):
    (tmp_path / "notes.txt").write_text("no picture")
    assert "There are no pictures" in train(2, tmp_path, out)


def test_a_corrupt_picture_is_named(pictures: Path, out: Path):
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    assert "broken.jpg" in train(2, pictures, out)


def test_a_tiny_picture_is_named_with_the_size_it_needs(pictures: Path, out: Path):
    Image.new("RGB", (20, 30)).save(pictures / "tiny.png")
    told = train(2, pictures, out)
    assert "tiny.png" in told and "20×30" in told and "64" in told


def test_an_unknown_key_names_the_nearest(pictures: Path, out: Path):
    assert "Did you mean adapter.rank?" in train(2, pictures, out, "--set", "adapter.rnk=3")


def test_an_unknown_method_names_the_nearest(pictures: Path, out: Path):
    assert "dora" in train(2, pictures, out, "--adapter", "dorra")


def test_an_unknown_optimizer_names_the_nearest(pictures: Path, out: Path):
    assert "AdamW" in train(2, pictures, out, "--set", "optim.name=AdmW")


def test_a_layer_pattern_that_matches_nothing_is_named(pictures: Path, out: Path):
    assert "no_such_layer" in train(2, pictures, out, "--set", "targets.unet=no_such_layer.*")


def test_an_unknown_option_is_refused_with_usage():
    assert "No such option" in refused(2, "train", "--bse", "x")


def test_a_base_that_is_missing(pictures: Path, out: Path):
    assert "There is no base model at ./none" in train(3, pictures, out, "--base", "./none")


def test_a_base_that_is_another_kind_of_model(pictures: Path, out: Path, tmp_path: Path):
    base = tmp_path / "sd15"
    base.mkdir()
    (base / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert "not Stable Diffusion XL" in train(7, pictures, out, "--base", base)


def test_a_folder_that_is_no_model(pictures: Path, out: Path, tmp_path: Path):
    assert "model_index.json" in train(3, pictures, out, "--base", tmp_path)


def test_a_checkpoint_file_that_is_not_sdxl(pictures: Path, out: Path, tmp_path: Path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "no Stable Diffusion" in train(7, pictures, out, "--base", path)


def test_a_pickle_is_not_opened_as_a_base(pictures: Path, out: Path, tmp_path: Path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x04.")
    assert "not a .safetensors file" in train(4, pictures, out, "--base", path)


def test_a_trigger_that_splits_into_many_tokens_is_explained(pictures: Path, out: Path):
    result = studio("train", pictures, "--trigger", "xkqzvwjt99", *FAST, "--out", out)
    assert result.exit_code == 0, result.output
    assert "xkqzvwjt99" in result.stderr and "tokens" in result.stderr and "·" in result.stderr


def test_a_full_disk(pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "The disk is full" in train(6, pictures, out)


def test_a_folder_that_cannot_be_made(pictures: Path):
    assert "/dev/null" in train(2, pictures, Path("/dev/null/out"))


def test_a_configuration_that_is_not_there(pictures: Path, out: Path):
    assert "There is no configuration file" in train(3, pictures, out, "--config", "none.yaml")


def test_resuming_what_was_never_started(pictures: Path, out: Path):
    assert "without --resume" in train(3, pictures, out, "--resume")


def test_resuming_where_there_is_no_folder(tmp_path: Path):
    assert "There is no run in" in refused(3, "train", "--resume", "--out", tmp_path / "nowhere")


def test_resuming_without_naming_a_run():
    assert "--out" in refused(2, "train", "--resume")


def test_an_adapter_that_is_not_there():
    assert "There is no file" in refused(3, "sample", "none.safetensors", "--prompt", "x")


def test_a_run_that_is_not_finished(tmp_path: Path):
    assert "no adapter.safetensors" in refused(3, "sample", tmp_path, "--prompt", "x")


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 a zip file", b"\x80\x04\x95 a pickle", b"short", b"\x10" + b"\0" * 7 + b"{"]
)
def test_a_file_that_is_no_adapter(tmp_path: Path, content: bytes):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    for command in (["info", path], ["sample", path, "--prompt", "x"]):
        assert "adapter.safetensors" in refused(4, *command)


def test_a_safetensors_file_that_is_no_adapter(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "not an adapter" in refused(4, "info", path)


def test_a_size_that_is_no_size():
    assert "--size 1024x768" in refused(2, "sample", "--prompt", "x", "--size", "large")


def test_a_size_that_does_not_fit_the_base(tmp_path: Path):
    told = refused(2, "sample", "--base", BASE, "--prompt", "x", "--size", "100x100", "--out", tmp_path)
    assert "multiples of" in told


def test_an_unknown_scheduler_names_the_nearest():
    assert "euler" in refused(2, "sample", "--prompt", "x", "--scheduler", "eulr")


def test_strengths_that_do_not_pair_with_adapters():
    assert "2 strengths" in refused(2, "sample", "a.safetensors", "--prompt", "x", "--strength", "1", "--strength", "2")


def test_info_of_nothing():
    assert "There is no file" in refused(3, "info", "none.png")
