"""The library on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.files import FusedConcept
from studio.cli import app
from studio.library import Library
from studio.sampling import adapter_path
from tests.library import made, names


@pytest.fixture
def told(library: Library, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SPECTRAL_STUDIO_DATA", str(library.home))

    def told(*words: str | Path, code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result.output.strip()

    return told


def test_nothing_is_thrown_away_where_one_of_several_is_not_there(told: Any, library: Library, dog: str):
    told("library", "trash", dog, "lib:ffff", code=3)
    assert library.get_adapter(dog).trashed_at is None


def test_an_adapter_is_named_by_its_id_wherever_a_path_could_stand(
    told: Any, library: Library, dog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert adapter_path(Path(f"lib:{dog[:10]}")) == library.path_of(dog)
    assert "trigger: sks" in told("info", f"lib:{dog[:10]}")
    assert "no adapter" in told("info", "lib:zz", code=3)
    monkeypatch.chdir(tmp_path)
    file = made(Path("lib:mine.safetensors"))
    assert adapter_path(Path("./lib:mine.safetensors")) == file


def test_the_commands_do_what_the_library_does(told: Any, library: Library, dog: str, tmp_path: Path):
    cat = told(
        "library", "add", made(tmp_path / "cat.safetensors", 1, trigger="zwx"), "--name", "Tom", "--tag", "Night"
    )
    assert told("library", "tag", cat, "a b") == "night, a b"
    assert told("library", "untag", cat, "night") == "a b"
    assert told("library", "rename", cat, "[b]Tom") == "[b]Tom"
    assert "[b]Tom" in told("library", "list") and "Tom" not in told("library", "search", "sks")
    told("library", "trash", cat, dog[:9])
    assert told("library", "list") == "There is none."
    assert told("library", "restore", dog[:9]) == "sks dog"
    assert told("library", "empty", "--yes") == "[b]Tom"
    assert [entry["id"] for entry in json.loads(told("library", "list", "--json"))] == [dog]


def test_show_tells_base_file_and_parentage(told: Any, library: Library, dog: str, tmp_path: Path):
    concepts = (FusedConcept(sha256=dog), FusedConcept(sha256="0" * 64))
    fused = library.add(made(tmp_path / "a.safetensors", 3, concepts=concepts, base_hash="b" * 64), name="both")
    shown = told("library", "show", f"lib:{fused}")
    assert f"made of: sks dog (lib:{dog[:12]}), one that is not here (lib:{'0' * 12})" in shown
    assert f"embedded (hash {'b' * 64})" in shown
    assert f"part of: both (lib:{fused[:12]})" in told("library", "show", dog)
    told_json = json.loads(told("library", "show", dog, "--json"))
    assert told_json["children"] == [fused] and told_json["path"] == str(library.path_of(dog))
    library.path_of(dog).unlink()
    assert json.loads(told("library", "show", dog, "--json"))["path"] is None
    assert "file has vanished" in told("library", "list")


def test_emptying_asks_first(told: Any, library: Library, dog: str):
    library.trash(dog)
    told("library", "empty", code=1)
    assert names(library, trashed=True) == ["sks dog"]
