"""The library's entries: how they are found, thrown away and brought back, and who came of whom."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from adapters.errors import MissingError, UserInputError
from adapters.files import FusedConcept
from studio.library import Library
from studio.store import adapters
from tests.library import files, made, names, sha256


@pytest.mark.parametrize("text", ["zwx", "CAT", "dora", "zwx embed", "night", "Ｃat"])
def test_every_word_is_looked_for_in_all_that_is_told(library: Library, dog: str, cat: str, text: str):
    library.tag(cat, ["Night"])
    assert names(library, text) == ["zwx cat"]


@pytest.mark.parametrize("text", ["%", "_", "zwx dog", "' OR 1=1 --", "*", "\0", "\udcff", "\\"])
def test_no_sign_means_anything_but_itself(library: Library, dog: str, cat: str, text: str):
    assert names(library, text) == ([] if text.isprintable() else ["zwx cat", "sks dog"])


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
    assert names(library, base="%") == names(library, base="_") == []
    assert library.get_adapter(dog).tags == ["night"]


def test_a_tag_that_is_not_there_cannot_be_taken_away(library: Library, dog: str):
    with pytest.raises(UserInputError, match="has no tag"):
        library.untag(dog, ["night"])


@pytest.mark.parametrize("id", ["", "lib:", "zz", "%", "_", "../x", "\udcff"])
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


def test_whatever_changes_moves_the_revision_and_looking_does_not(library: Library, dog: str, tmp_path: Path):
    other = Library(library.home)
    changes = [
        lambda: library.rename(dog, "Rex"),
        lambda: other.tag(dog, ["brown"]),
        lambda: library.trash(dog),
        lambda: other.restore(dog),
        lambda: other.trash(dog),
        lambda: library.empty_trash(),
        lambda: other.add(made(tmp_path / "again.safetensors", 5)),
    ]
    seen = [library.revision()]
    for change in changes:
        change()
        seen.append(library.revision())
        library.list_adapters()
        assert library.revision() == other.revision() == seen[-1]
    assert seen == sorted(set(seen))
