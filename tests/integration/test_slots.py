"""Slots of columns from the command line: taken, listed, refused and freed; and what a file says of its columns."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.columns import slot_count
from adapters.errors import UserInputError
from adapters.files import load_adapter, read_header
from adapters.layer import master
from adapters.registry import make_spec
from adapters.targets import select_sites
from studio.cli import app
from studio.slot_registry import claims
from studio.slots import claimed
from tests.support import make_pictures, quick_config
from trainers.concept import concept_of
from trainers.outline import hash_of, networks_of
from trainers.sdxl import Base


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAL_STUDIO_STATE", str(tmp_path / "state"))


def invoke(*words: object) -> tuple[int, str]:
    made = CliRunner().invoke(app, [str(word) for word in words])
    return made.exit_code, made.output


def config(pictures: Path, **adapter: object):
    return quick_config(pictures, adapter=make_spec("spectral-a", **{"rank": 2, **adapter}))


def test_what_is_known_of_a_base_before_it_is_loaded_is_true(base: Base):
    assert hash_of(base.name) == base.hash
    for name, network in networks_of(base.name).items():
        expected = {key: value.shape for key, value in base.components[name].state_dict().items()}
        assert {key: value.shape for key, value in network.state_dict().items()} == expected


def test_a_concept_is_its_words_and_pictures_wherever_they_lie(tmp_path: Path):
    first, same = (make_pictures(tmp_path / name, 2) for name in ("a", "b"))
    (same / "0.png").rename(same / "renamed.png")
    assert concept_of(quick_config(first).data) == concept_of(quick_config(same).data)
    assert concept_of(quick_config(make_pictures(tmp_path / "c", 3)).data) != concept_of(quick_config(first).data)


def test_a_run_takes_a_slot_and_its_file_says_all_of_its_columns(base: Base, tmp_path: Path):
    pictures, out = make_pictures(tmp_path / "pictures", 2), tmp_path / "run"
    code, said = invoke(
        *("train", pictures, "--trigger", "qvb", "--class", "cat", "--adapter", "spectral-a", "--steps", 1),
        *("--preset", "quick", "--set", "adapter.rank=2", "--set", "adapter.slot=auto", "--set", "sample.count=0"),
        *("--set", "targets.unet=cross-attention&up", "--out", out),
    )
    assert code == 0, said
    (taken,) = claims()
    file = load_adapter(out / "adapter.safetensors")
    card, name = file.card, "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    sites = select_sites(base.unet, "unet", "cross-attention&up")
    assert file.spec.model_dump()["slot"] == taken.slot and card.slots == taken.slots == slot_count(sites, 2)
    assert card.concept == taken.concept and card.base_hash == taken.base_hash == base.hash
    assert file.tensors[f"{name}.columns"].tolist() == [2 * taken.slot, 2 * taken.slot + 1]
    assert {f"{name}.{part}" for part in ("sigma", "left", "right", "up", "down")} <= file.tensors.keys()
    (site,) = (site for site in sites if site.name == name)
    raw = master(site.weight).numpy().tobytes()
    assert file.header.weights[name] == hashlib.sha256(raw).hexdigest()
    assert len(file.header.weights) == len(sites)
    assert f"slot: {taken.slot}" in (out / "config.yaml").read_text()
    listed = invoke("slots")[1]
    assert f"slot {taken.slot} of {taken.slots}, rank 2, top columns" in listed and f"qvb cat, {out}" in listed
    assert "is free" in invoke("slots", "--forget", out)[1] and "No run has a slot" in invoke("slots")[1]
    assert invoke("slots", "--forget", out)[0] != 0


def test_files_without_columns_and_older_files_say_nothing_of_them(tmp_path: Path):
    from torch import nn

    from adapters.files import AdapterCard, save_adapter
    from adapters.inject import attach

    adapters = attach({"unet": nn.ModuleDict({"a": nn.Linear(6, 6)})}, make_spec("lora", rank=2), {"unet": "a"})
    save_adapter(tmp_path / "a.safetensors", adapters, AdapterCard())
    header = read_header(tmp_path / "a.safetensors")
    assert not header.weights and header.card.slots == 0 and header.card.concept == ""


def test_a_slot_asked_for_is_refused_where_another_has_it_and_by_default_it_is_a_warning(tmp_path: Path):
    first, other = make_pictures(tmp_path / "a", 2), make_pictures(tmp_path / "b", 3)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    with claimed(config(first), tmp_path / "one", insist=True) as (got, warning):
        assert got.adapter.model_dump()["slot"] == 0 and warning is None
    with (
        pytest.raises(UserInputError, match="shares columns with sks octopus"),
        claimed(config(other, slot=0), tmp_path / "two", insist=True),
    ):
        pass
    with claimed(config(other), tmp_path / "two", insist=True) as (got, warning):
        assert got.adapter.model_dump()["slot"] == 0 and warning is not None and "slot=auto" in warning
    with claimed(config(other, slot="auto"), tmp_path / "three", insist=True) as (got, warning):
        assert got.adapter.model_dump()["slot"] > 0 and warning is None


def test_a_run_that_fails_before_anything_is_saved_leaves_its_slot_free(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(KeyboardInterrupt),
        claimed(config(make_pictures(tmp_path / "a", 2)), tmp_path / "run", insist=True),
    ):
        assert len(claims()) == 1
        raise KeyboardInterrupt
    assert claims() == []


def test_methods_and_layers_without_a_common_slot_are_not_registered(tmp_path: Path):
    pictures = make_pictures(tmp_path / "a", 2)
    with claimed(quick_config(pictures), tmp_path / "run", insist=True) as (got, _):
        assert got.adapter.method == "lora"
    whole = {"unet": "attention", "overrides": [{"layers": "attention&up", "adapter": {"rank": 4}}]}
    several = quick_config(pictures, adapter=make_spec("spectral-a", rank=2), targets=whole)
    with claimed(several, tmp_path / "run", insist=True) as (got, _):
        assert got == several
    auto = quick_config(pictures, adapter=make_spec("spectral-a", rank=2, slot="auto"), targets=whole)
    with pytest.raises(UserInputError, match="no slot in common"), claimed(auto, tmp_path / "run", insist=True):
        pass
    assert claims() == []


def test_a_slot_that_is_no_number_is_refused_in_words(tmp_path: Path):
    for value in ("-1", "first"):
        words = ("--adapter", "spectral-a", "--set", f"adapter.slot={value}", "--out", tmp_path / "run")
        code, said = invoke("train", make_pictures(tmp_path / "a", 1), "--trigger", "sks", *words)
        assert code == 2 and "adapter.slot" in said and "auto" in said, said
