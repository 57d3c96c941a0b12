"""Free columns beside other adapters' (`studio train --with`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from adapters.base import AdapterSpec
from adapters.errors import MismatchError, UserInputError
from adapters.files import AdapterCard, save_adapter
from adapters.inject import attach
from adapters.registry import make_spec
from studio.slots import beside


def saved(folder: Path, method: str = "spectral-a", **knobs: object) -> Path:
    net = nn.ModuleDict({"a": nn.Linear(40, 48)})
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_adapter(path, attach({"unet": net}, make_spec(method, **knobs), {"unet": "a"}), AdapterCard())
    return path


def slot(spec: AdapterSpec, *others: Path) -> int:
    return beside(spec, others).slot  # pyright: ignore[reportAttributeAccessIssue]


def test_the_first_free_slot_is_taken(tmp_path: Path):
    zero, two = (saved(tmp_path, rank=4, slot=n) for n in (0, 2))
    spec = make_spec("spectral-r", rank=4)
    assert slot(spec) == 0 and slot(spec, zero) == 1 and slot(spec, zero, two) == 1
    assert slot(make_spec("spectral-a", rank=4, slot=1), saved(tmp_path, rank=4, slot=1), two) == 3


def test_other_ranks_of_the_top_columns_are_avoided_column_by_column(tmp_path: Path):
    assert slot(make_spec("spectral-a", rank=4), saved(tmp_path, rank=6, slot=0)) == 2  # columns 0 to 5 are taken
    assert slot(make_spec("spectral-a", rank=8), saved(tmp_path, rank=2, slot=3)) == 1  # 6 and 7 are


def test_combs_of_one_rank_go_by_slot(tmp_path: Path):
    used = saved(tmp_path, rank=4, slot=0, columns="comb")
    assert slot(make_spec("spectral-a", rank=4, columns="comb"), used) == 1


@pytest.mark.parametrize("knobs", [{"rank": 4}, {"rank": 8, "columns": "comb"}])
def test_columns_that_cannot_be_compared_are_refused(tmp_path: Path, knobs: dict[str, object]):
    used = saved(tmp_path, rank=4, slot=0, columns="comb")
    with pytest.raises(MismatchError, match="columns=comb"):
        slot(make_spec("spectral-a", **knobs), used)


def test_an_adapter_without_columns_takes_none(tmp_path: Path):
    assert slot(make_spec("spectral-a", rank=4), saved(tmp_path, "lora", rank=4)) == 0


def test_a_method_without_columns_is_refused(tmp_path: Path):
    with pytest.raises(UserInputError, match="spectral-a"):
        beside(make_spec("lora"), [saved(tmp_path)])
