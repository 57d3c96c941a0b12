"""`studio fuse` from trained files to a fused one that draws, and `studio train --with`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from adapters.files import attach_file, read_header
from studio.cli import app
from studio.library import Library
from tests.support import BASE, make_pictures, quick_config, run
from trainers.sdxl import generate, load_base

SUBJECTS = {"sks": "octopus", "zwx": "rocket"}


@pytest.fixture(scope="module")
def adapters(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two subjects, a few steps each: a LoRA and a Spectral-A."""
    found: list[Path] = []
    for number, (trigger, word) in enumerate(SUBJECTS.items()):
        folder = tmp_path_factory.mktemp(word)
        pictures = make_pictures(folder / "pictures", 2)
        method = ({"method": "lora", "rank": 2}, {"method": "spectral-a", "rank": 2})[number]
        data = {"folder": pictures, "captions": {"trigger": trigger, "class_word": word}}
        run(quick_config(pictures, data=data, adapter=method, steps=6, validation_levels=0), folder, cache)
        found.append(folder / "adapter.safetensors")
    return found


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def drawn(path: Path) -> bytes:
    base = load_base(BASE)
    attach_file(base.components, path, base.hash)
    (picture,) = generate(base, ["a sks octopus and a zwx rocket"], seeds=[0], inference_steps=2)
    return picture.tobytes()


@pytest.mark.parametrize("how", ["least-squares", "zip"])
def test_a_fused_file_draws_and_its_report_lies_beside_it(adapters: list[Path], tmp_path: Path, how: str):
    out = tmp_path / "both.safetensors"
    code, said = invoke("fuse", *adapters, "--how", how, "--weights", "1,0.8", "--out", out)
    assert code == 0, said
    card = read_header(out).card
    assert card.fused_by == how and card.trigger == "sks, zwx"
    assert [(one.trigger, one.weight) for one in card.concepts] == [("sks", 1.0), ("zwx", 0.8)]
    report = json.loads((tmp_path / "both.report.json").read_text())
    assert report["verdict"] in said
    assert {pair["crosstalk"] is not None for pair in report["pairs"]} == {True}
    assert Image.open(tmp_path / "both.report.png").size[0] > 200
    assert drawn(out) != drawn(adapters[0])


def test_a_fused_one_of_the_library_knows_its_parents(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPECTRAL_STUDIO_DATA", str(tmp_path / "home"))
    library = Library()
    parents = [library.add(path) for path in adapters]
    ids = [f"lib:{id[:12]}" for id in parents]
    out = tmp_path / "both.safetensors"
    code, said = invoke("fuse", *ids, "--how", "sum", "--no-prompts", "--out", out, "--library")
    assert code == 0, said
    fused = library.get_adapter(said.split()[-1])
    assert [entry.id for entry in library.parents(fused.id)] == parents == fused.parents
    assert library.path_of(fused.id).read_bytes() == out.read_bytes()


def test_a_foreign_adapter_goes_beside_a_spectral_one(adapters: list[Path], tmp_path: Path):
    code, said = invoke("fuse", *adapters, "--how", "spectral", "--no-prompts", "--out", tmp_path / "f.safetensors")
    assert code == 0, said
    assert "Only weights were compared" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--how", "least-squares", "--no-prompts"], "--no-prompts"),
        (["--how", "leest-squares"], "least-squares"),
        (["--weights", "1"], "--weights"),
        (["--weights", "a,b"], "1,1,0.8"),
        (["--set", "densety=0.1"], "density"),
        (["--set", "density=7"], "density"),
    ],
)
def test_what_cannot_be_fused_is_told_in_words(adapters: list[Path], tmp_path: Path, words: list[str], told: str):
    code, said = invoke("fuse", *adapters, *words, "--out", tmp_path / "f.safetensors")
    assert code != 0 and told in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_training_beside_another_takes_free_columns(adapters: list[Path], cache: Path, tmp_path: Path):
    pictures = make_pictures(tmp_path / "pictures", 2)
    code, said = invoke(
        *("train", pictures, "--trigger", "qvb", "--class", "cat", "--adapter", "spectral-a", "--steps", 1),
        *("--preset", "quick", "--set", "adapter.rank=2", "--set", "sample.count=0", "--with", adapters[1]),
        *("--out", tmp_path / "run"),
    )
    assert code == 0, said
    assert read_header(tmp_path / "run" / "adapter.safetensors").spec.model_dump()["slot"] == 1
    out = tmp_path / "f.safetensors"
    code, said = invoke("fuse", adapters[1], tmp_path / "run", "--how", "spectral", "--no-prompts", "--out", out)
    assert code == 0, said
    assert "0 shared columns" in said
