"""The registry of slots: who learnt on which columns, over all of a user's runs."""

from __future__ import annotations

import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.errors import FileFormatError, UnknownNameError, UserInputError
from studio import slot_registry
from studio.slot_registry import Claim, claim, claims, forget, registry_path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAL_STUDIO_STATE", str(tmp_path / "state"))


def concept(number: int) -> str:
    """A UUID that hashes to the slot of that number, whatever K: its value is the number."""
    return str(uuid.UUID(int=number))


def wanted(folder: Path, number: int, **changes: object) -> Claim:
    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, object] = {
        "base_hash": "b", "columns": "top", "rank": 4, "targets": {"unet": "attention"}, "slots": 5, "slot": 0,
        "concept": concept(number), "trigger": f"t{number}", "class_word": "cat", "folder": str(folder), **changes,
    }  # fmt: skip
    return Claim.model_validate(whole)


def searched(folder: Path, number: int, **changes: object) -> int:
    return claim(wanted(folder, number, **changes), search=True, insist=True)[0].slot


def test_a_search_begins_at_the_concept_s_hash_and_goes_on_from_slot_to_slot(tmp_path: Path):
    assert searched(tmp_path / "a", 3) == 3
    assert searched(tmp_path / "b", 8) == 4  # 8 mod 5 is 3, which is taken
    assert searched(tmp_path / "c", 13) == 0  # and 4 is, too
    assert [(one.trigger, one.slot) for one in claims()] == [("t13", 0), ("t3", 3), ("t8", 4)]


def test_when_all_slots_are_taken_that_is_said(tmp_path: Path):
    for number in range(5):
        searched(tmp_path / str(number), number)
    with pytest.raises(UserInputError, match="All 5 slots of rank 4") as refused:
        searched(tmp_path / "more", 7)
    assert "studio slots --forget" in refused.value.fix
    assert len(claims()) == 5


def test_a_concept_s_own_slot_is_no_hindrance_to_it(tmp_path: Path):
    assert searched(tmp_path / "a", 3) == searched(tmp_path / "again", 3) == 3
    assert searched(tmp_path / "b", 8) == 4
    assert claim(wanted(tmp_path / "b", 8, slot=1), search=True, insist=True)[0].slot == 4  # the run keeps it


def test_a_slot_that_is_insisted_on_is_refused_where_it_is_anothers(tmp_path: Path):
    searched(tmp_path / "a", 3)
    with pytest.raises(UserInputError, match="t3 cat") as refused:
        claim(wanted(tmp_path / "b", 8, slot=3), search=False, insist=True)
    assert str(tmp_path / "a") in refused.value.what and "adapter.slot=auto" in refused.value.fix
    assert claim(wanted(tmp_path / "c", 3, slot=3), search=False, insist=True)[0].slot == 3  # the concept's own
    got, met = claim(wanted(tmp_path / "b", 8, slot=3), search=False, insist=False)
    assert got.slot == 3 and met is not None and met.trigger == "t3"


def test_top_columns_are_compared_by_number_whatever_the_rank_and_layers(tmp_path: Path):
    searched(tmp_path / "a", 1)  # columns 4 to 7
    assert searched(tmp_path / "b", 0, rank=6, targets={"unet": "all"}) == 2  # not 0 to 5, not 6 to 11
    assert searched(tmp_path / "c", 7, rank=2, slots=10) == 9  # 12 to 17 are b's


def test_other_combs_and_other_bases_take_nothing_away(tmp_path: Path):
    assert searched(tmp_path / "a", 2, columns="comb") == 2
    for name, changes in (
        ("rank", {"rank": 8, "columns": "comb"}),
        ("layers", {"targets": {"unet": "all"}, "columns": "comb"}),
        ("base", {"base_hash": "c", "columns": "comb"}),
        ("top", {}),
    ):
        assert searched(tmp_path / name, 7, **changes) == 2
    assert searched(tmp_path / "same", 7, columns="comb") == 3


def test_a_deleted_run_frees_its_slot_and_so_does_forgetting_it(tmp_path: Path):
    searched(tmp_path / "a", 3)
    searched(tmp_path / "b", 8)
    shutil.rmtree(tmp_path / "a")
    assert [one.is_held for one in claims()] == [False, True]
    assert searched(tmp_path / "c", 13) == 3
    assert forget(tmp_path / "b").slot == 4
    assert searched(tmp_path / "d", 4) == 4
    with pytest.raises(UnknownNameError):
        forget(tmp_path / "b")


def test_claims_at_the_same_time_get_different_slots(tmp_path: Path):
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda number: searched(tmp_path / str(number), 5 * number), range(5)))
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_a_refusal_changes_nothing_and_a_broken_file_is_told(tmp_path: Path):
    searched(tmp_path / "a", 3)
    before = registry_path().read_text()
    with pytest.raises(UserInputError):
        claim(wanted(tmp_path / "b", 8, slot=3), search=False, insist=True)
    assert registry_path().read_text() == before
    registry_path().write_text('{"claims": [{}]}')
    with pytest.raises(FileFormatError, match=r"slots\.json"):
        slot_registry.claims()
