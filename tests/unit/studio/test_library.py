"""The library: what it takes in and keeps, and that no text of anyone's becomes a path."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapters.errors import FileFormatError, StudioError, UserInputError
from adapters.files import FusedConcept
from adapters.formats.peft_options import peft_options
from studio import library as library_module
from studio.library import LONGEST, Library
from studio.queue import Queue
from studio.store import Store
from studio.store.migrations import MIGRATIONS
from tests.library import files, foreign, made, names, picture, sha256
from tests.submissions import submission
from trainers.thumbnail import data_url

HOSTILE = ["../../etc/passwd", "a\0b", "/abs", "ünïcode 🐙", "x" * 10_000, "a\nb\u202e", "%_\\' OR 1=1 --", "\ud800"]


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
    job = Queue(library.home).submit(submission("t"))
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
