"""The library: what it keeps, finds, throws away and brings back, and that no text of anyone's becomes a path."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from adapters.errors import FileFormatError, MissingError, StudioError, UserInputError
from adapters.files import FORMAT, AdapterCard, FusedConcept
from adapters.formats.peft_options import peft_options
from studio import library as library_module
from studio.cli import app
from studio.library import LONGEST, Library
from studio.queue import Queue, Submission
from studio.sampling import adapter_path
from studio.store import Store, adapters
from studio.store.migrations import MIGRATIONS
from trainers.thumbnail import data_url

HOSTILE = ["../../etc/passwd", "a\0b", "/abs", "ünïcode 🐙", "x" * 10_000, "a\nb\u202e", "%_\\' OR 1=1 --", "\ud800"]


def made(path: Path, number: float = 0, method: str = "lora", **card: Any) -> Path:
    """An adapter file of ours; another number, other bytes."""
    metadata = {
        "format": FORMAT,
        "spec": json.dumps({"method": method, "rank": 2}),
        "targets": "{}",
        "card": AdapterCard(**{"trigger": "sks", "class_word": "dog", "base": "embedded", **card}).model_dump_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"layer.factor": torch.full((2, 3), number)}, path, metadata)
    return path


def foreign(path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("unet.x.lora_A.weight", "unet.x.lora_B.weight")
    save_file({name: torch.ones(2, 2) for name in names}, path, metadata)
    return path


def picture(path: Path, side: int = 512) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), "teal").save(path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(library: Library) -> set[str]:
    return {path.name for path in library.folder.iterdir()} - {".lock"}


def names(library: Library, text: str = "", **more: Any) -> list[str]:
    return [entry.name for entry in library.list_adapters(text, **more)]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


@pytest.fixture
def dog(library: Library, tmp_path: Path) -> str:
    return library.add(made(tmp_path / "dog.safetensors"))


@pytest.fixture
def cat(library: Library, tmp_path: Path) -> str:
    return library.add(made(tmp_path / "cat.safetensors", 1, "dora", trigger="zwx", class_word="cat", base_hash="b"))


def test_the_library_is_there_without_torch():
    code = "import sys, studio.library, studio.library_texts, studio.cli_library; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


# --- the store --------------------------------------------------------------------------------------------


def test_the_version_before_keeps_its_adapters_and_they_are_found(tmp_path: Path):
    path = tmp_path / "studio.db"
    Store(path, MIGRATIONS[:1]).close()
    row = (
        "0a",
        "Rex",
        "sks",
        "dog",
        "lora",
        "embedded",
        "h",
        "0a.safetensors",
        "[]",
        '["t"]',
        "2026-01-01T00:00+00:00",
    )
    columns = 'id, name, "trigger", class_word, method, base, base_hash, file, parents, tags, created'
    with closing(sqlite3.connect(path)) as old:
        old.execute(f"INSERT INTO adapters ({columns}) VALUES ({', '.join('?' * len(row))})", row)
        old.commit()
    (found,) = Library(tmp_path).list_adapters("rex SKS")
    assert (found.id, found.name, found.tags, found.base_hash) == ("0a", "Rex", ["t"], "h")


# --- adding -----------------------------------------------------------------------------------------------


def test_an_entry_tells_what_the_header_tells(library: Library, cat: str):
    entry = library.get_adapter(cat)
    told = (entry.name, entry.trigger, entry.class_word, entry.method, entry.base, entry.base_hash)
    assert told == ("zwx cat", "zwx", "cat", "dora", "embedded", "b")


def test_an_id_is_the_files_sha256_and_the_copy_has_its_bytes(library: Library, dog: str, tmp_path: Path):
    assert dog == sha256(tmp_path / "dog.safetensors")
    (tmp_path / "dog.safetensors").unlink()
    assert library.path_of(dog) == library.folder / f"{dog}.safetensors"
    assert sha256(library.path_of(dog)) == dog


def test_the_same_bytes_are_one_entry_which_keeps_its_name(library: Library, dog: str, tmp_path: Path):
    library.rename(dog, "Rex")
    again = shutil.copy(tmp_path / "dog.safetensors", tmp_path / "again.safetensors")
    assert library.add(Path(again), name="other") == dog
    assert names(library) == ["Rex"]


def test_a_folder_of_a_run_gives_its_adapter_and_its_last_sample(library: Library, tmp_path: Path):
    run = made(tmp_path / "runs" / "my-run" / "adapter.safetensors", trigger="", class_word="").parent
    picture(run / "samples" / "step-000010.png")
    id = library.add(run)
    assert library.get_adapter(id).name == "my-run"
    assert Image.open(BytesIO(library.thumbnail(id) or b"")).size == (256, 256)


def test_the_headers_picture_is_the_thumbnail(library: Library, tmp_path: Path):
    url = data_url(picture(tmp_path / "picture.png", 200))
    id = library.add(made(tmp_path / "a.safetensors", thumbnail=url))
    assert Image.open(BytesIO(library.thumbnail(id) or b"")).format == "JPEG"
    other = library.add(foreign(tmp_path / "b.safetensors", {"modelspec.thumbnail": url}))
    assert library.thumbnail(other) == library.thumbnail(id)


@pytest.mark.parametrize("url", ["", "data:image/jpeg;base64,/9j/4AAA", "javascript:alert(1)"])
def test_a_picture_that_is_none_is_left_out(library: Library, tmp_path: Path, url: str):
    id = library.add(made(tmp_path / "a.safetensors", thumbnail=url))
    assert library.thumbnail(id) is None
    assert files(library) == {f"{id}.safetensors"}


def test_another_programs_file_is_taken_by_its_header(library: Library, tmp_path: Path):
    id = library.add(foreign(tmp_path / "my style.safetensors"))
    entry = library.get_adapter(id)
    assert (entry.name, entry.method, entry.base) == ("my style", "lora", "")


def test_the_alphas_that_peft_writes_beside_a_file_come_along(library: Library, tmp_path: Path):
    path = foreign(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 7}')
    copy = library.path_of(library.add(path))
    assert peft_options(copy, {}).alpha("unet.x", 2) == 7.0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), b"\x80\x04" + bytes(100)])
def test_what_is_no_adapter_is_refused_and_nothing_stays(library: Library, tmp_path: Path, content: bytes):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError):
        library.add(tmp_path / "x.safetensors")
    assert not library.folder.exists() and library.list_adapters() == []


def test_a_file_that_changes_while_it_is_copied_is_not_taken(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = made(tmp_path / "a.safetensors")
    copy = library_module.shutil.copyfile

    def changing(source: Path, target: Path) -> None:
        copy(made(path, 5), target)

    monkeypatch.setattr(library_module.shutil, "copyfile", changing)
    with pytest.raises(StudioError, match="while it was copied"):
        library.add(path)
    assert files(library) == set() and library.list_adapters() == []


def _die_half_way(home: Path, path: Path) -> None:
    def killed(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    library_module.shutil.copyfile = killed
    Library(home).add(path)


def test_an_add_that_is_killed_half_way_leaves_nothing_under_a_name_and_is_cleaned_up(library: Library, tmp_path: Path):
    path = made(tmp_path / "a.safetensors")
    process = get_context("fork").Process(target=_die_half_way, args=(library.home, path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (half,) = files(library)
    assert half.endswith(".part") and library.list_adapters() == []
    id = library.add(path)
    assert files(library) == {f"{id}.safetensors"}


def test_a_file_whose_entry_was_never_written_is_taken_up(library: Library, tmp_path: Path, monkeypatch: Any):
    path = made(tmp_path / "a.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(Library, "_enter", lambda *_: None)
        id = library.add(path)
    assert library.list_adapters() == []
    assert library.add(path) == id and names(library) == ["sks dog"]
    assert files(library) == {f"{id}.safetensors"}


def test_the_librarys_own_files_make_it_anew_when_its_database_is_lost(library: Library, dog: str):
    path = library.path_of(dog)
    library.store.close()
    for lost in library.home.glob("studio.db*"):
        lost.unlink()
    anew = Library(library.home)
    assert anew.add(path) == dog and names(anew) == ["sks dog"]


def test_a_job_that_finished_twice_has_one_adapter(library: Library, tmp_path: Path):
    job = Queue(library.home).submit(Submission(config={"base": "embedded", "adapter": {"method": "lora"}}, title="t"))
    library.add(made(tmp_path / "a.safetensors", 1), job=job)
    second = library.add(made(tmp_path / "a.safetensors", 2), job=job)
    assert [(entry.id, entry.job) for entry in library.list_adapters()] == [(second, job)]


# --- texts of others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_person_becomes_a_path(library: Library, dog: str, text: str):
    before = files(library)
    for change in (lambda: library.rename(dog, text), lambda: library.tag(dog, [text])):
        try:
            change()
        except UserInputError:
            assert text == "\ud800" or len(text) > LONGEST
    assert files(library) == before and sha256(library.path_of(dog)) == dog
    entry = library.get_adapter(dog)
    assert all(told.isprintable() and len(told) <= LONGEST for told in (entry.name, *entry.tags))


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "\ud800"])
def test_no_text_of_a_file_becomes_a_path(library: Library, tmp_path: Path, text: str):
    concept = FusedConcept(sha256=text)
    card = {"trigger": text, "class_word": text, "base": text, "base_hash": text, "concepts": (concept,)}
    id = library.add(made(tmp_path / "a.safetensors", **card))
    entry = library.get_adapter(id)
    assert files(library) == {f"{id}.safetensors"}
    assert len(entry.trigger) <= LONGEST and entry.trigger.isprintable()
    assert library.parents(id) == []


def test_letters_of_any_language_are_kept(library: Library, dog: str):
    name = "Ünïcode 🐙 犬 می\u200cخواهم"
    assert library.rename(dog, name).name == name


@pytest.mark.parametrize("name", ["", " \n", "\0", "x" * (LONGEST + 1)])
def test_a_name_that_is_none_is_refused_and_nothing_changes(library: Library, dog: str, name: str):
    with pytest.raises(UserInputError, match="is no name"):
        library.rename(dog, name)
    assert library.get_adapter(dog).name == "sks dog"


# --- finding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["zwx", "CAT", "dora", "zwx embed", "night", "Ｃat"])
def test_every_word_is_looked_for_in_all_that_is_told(library: Library, dog: str, cat: str, text: str):
    library.tag(cat, ["Night"])
    assert names(library, text) == ["zwx cat"]


@pytest.mark.parametrize("text", ["%", "_", "zwx dog", "' OR 1=1 --", "*", "\0", "\\"])
def test_no_sign_means_anything_but_itself(library: Library, dog: str, cat: str, text: str):
    assert names(library, text) == ([] if text != "\0" else ["zwx cat", "sks dog"])


def test_a_rename_and_a_tag_are_found_at_once_and_the_old_ones_no_more(library: Library, dog: str):
    library.rename(dog, "ÉMILE 100%")
    library.tag(dog, ["Pets"])
    assert names(library, "émile 100% pets") == ["ÉMILE 100%"]
    library.rename(dog, "Rex")
    library.untag(dog, ["pets"])
    assert names(library, "émile") == names(library, "pets") == []


def test_a_tag_is_meant_whole_and_a_base_by_its_hash(library: Library, dog: str, cat: str):
    library.tag(dog, ["night", "night"])
    library.tag(cat, ["nightly"])
    assert names(library, tag="Night") == ["sks dog"]
    assert names(library, base="b") == ["zwx cat"]
    assert library.get_adapter(dog).tags == ["night"]


def test_a_tag_that_is_not_there_cannot_be_taken_away(library: Library, dog: str):
    with pytest.raises(UserInputError, match="has no tag"):
        library.untag(dog, ["night"])


@pytest.mark.parametrize("id", ["", "lib:", "zz", "%", "_", "../x"])
def test_an_id_that_is_none_is_told(library: Library, dog: str, id: str):
    with pytest.raises(MissingError, match="no adapter"):
        library.get_adapter(id)


def test_an_id_may_be_cut_short_until_it_is_anothers(library: Library, dog: str, tmp_path: Path):
    assert library.get_adapter(dog[:8]).id == library.get_adapter(f"lib:{dog[:8]}").id == dog
    for number in range(1, 17):  # of seventeen, two begin with the same of sixteen digits
        library.add(made(tmp_path / "a.safetensors", number))
    first = [entry.id[0] for entry in library.list_adapters()]
    twice = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(UserInputError, match="Several"):
        library.get_adapter(twice)


# --- the trash --------------------------------------------------------------------------------------------


def test_what_comes_back_from_the_trash_is_as_it_was(library: Library, dog: str):
    library.tag(dog, ["night"])
    before = library.get_adapter(dog)
    library.trash(dog)
    assert names(library) == [] and names(library, trashed=True) == ["sks dog"]
    with pytest.raises(UserInputError, match="in the trash"):
        library.path_of(dog)
    library.restore(dog)
    assert library.get_adapter(dog) == before
    assert sha256(library.path_of(dog)) == dog


def test_adding_it_again_takes_it_out_of_the_trash(library: Library, dog: str, tmp_path: Path):
    library.trash(dog)
    library.add(tmp_path / "dog.safetensors")
    assert names(library) == ["sks dog"]


def test_emptying_deletes_what_is_in_the_trash_alone(library: Library, dog: str, cat: str):
    library.trash(dog)
    assert library.empty_trash(timedelta(days=1)) == []
    assert [entry.id for entry in library.empty_trash()] == [dog]
    assert files(library) == {f"{cat}.safetensors"} and names(library) == ["zwx cat"]
    with pytest.raises(MissingError):
        library.restore(dog)


def test_a_file_that_has_vanished_is_told_and_mended_by_adding_it_again(library: Library, dog: str, tmp_path: Path):
    library.path_of(dog).unlink()
    assert not library.has_file(library.get_adapter(dog))
    with pytest.raises(MissingError, match="vanished"):
        library.path_of(dog)
    library.add(tmp_path / "dog.safetensors")
    assert sha256(library.path_of(dog)) == dog


# --- parentage --------------------------------------------------------------------------------------------


def test_a_fused_one_knows_its_parents_in_whatever_order_they_came(library: Library, dog: str, tmp_path: Path):
    later = made(tmp_path / "later.safetensors", 2, trigger="zwx")
    concepts = tuple(FusedConcept(sha256=id) for id in (dog, sha256(later), "0" * 64))
    fused = library.add(made(tmp_path / "fused.safetensors", 3, concepts=concepts))
    assert [entry.id for entry in library.parents(fused)] == [dog]
    library.add(later)
    assert [entry.id for entry in library.parents(fused)] == [dog, sha256(later)]
    assert library.get_adapter(fused).parents[2] == "0" * 64
    assert [entry.id for entry in library.children(dog)] == [fused]
    assert library.children(fused) == []


def test_more_parents_than_sql_has_places_are_looked_up(library: Library, dog: str):
    with library.store.reading() as session:
        (found,) = adapters.known(session, [*map(str, range(40_000)), dog])
    assert found.id == dog


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture
def told(library: Library, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SPECTRAL_STUDIO_DATA", str(library.home))

    def told(*words: str | Path, code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result.output.strip()

    return told


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
