"""What is told of a fusion before and after it, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.fusion.way import Candidate, FusionOptions, all_ways
from studio import cli, fusion_check
from studio.clerk_answers import QUESTIONS
from studio.clerk_process import answer
from studio.fusion_words import in_words, told
from studio.library import Library
from tests.fusing import fused, loras, small_net
from tests.library import made


def ask(question: str, **details: Any) -> dict[str, Any]:
    return answer(QUESTIONS, json.dumps({"question": question, **details}))


def spectral(path: Path, columns: list[int], **card: Any) -> Path:
    """An adapter whose layer "one" learnt on these columns."""
    made(path, len(columns) + columns[0], "spectral-a", **card)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    save_file({**load_file(path), "one.columns": torch.tensor(columns)}, path, metadata)
    return path


def test_every_way_has_knobs_that_exist_and_every_knob_a_way() -> None:
    knobs = [knob for way in all_ways().values() for knob in way.knobs]
    assert set(knobs) == set(FusionOptions.model_fields)


def test_one_way_is_recommended_and_it_is_the_command_lines() -> None:
    (name,) = [name for name, way in all_ways().items() if way.recommended]
    assert cli.fuse.__defaults__ is not None and name in cli.fuse.__defaults__


def test_columns_that_two_share_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    ids = [
        library.add(spectral(tmp_path / "a.safetensors", [0, 1], trigger="sks")),
        library.add(spectral(tmp_path / "b.safetensors", [1, 2, 3], trigger="zwx")),
        library.add(spectral(tmp_path / "c.safetensors", [4, 5, 6, 7], trigger="hta")),
    ]
    asked = {"home": str(library.home), "weights": [1.0, 1.0]}
    advice = ask("fusion_advice", ids=ids[:2], **asked)["answer"]
    ways = {way["name"]: way["refusal"] for way in advice["ways"]}
    assert "same columns of 1 layers" in advice["warnings"][0]
    assert "same columns of one" in ways["spectral"]
    assert ways["least-squares"] == ""
    advice = ask("fusion_advice", ids=ids[::2], **asked)["answer"]
    assert advice["warnings"] == [] and all(way["refusal"] == "" for way in advice["ways"] if way["name"] == "spectral")


def test_a_way_refuses_whom_it_cannot_fuse() -> None:
    ways, lora, oft = all_ways(), Candidate("a", "lora"), Candidate("b", "oft")
    assert "columns of its own" in ways["spectral"].refusal([lora, oft])
    assert "a is no rotation" in ways["geodesic"].refusal([oft, lora])
    assert "is no rotation" in ways["geodesic"].refusal([oft, Candidate("c", "oft", 0.5)])
    assert "two adapters, not 3" in ways["geodesic"].refusal([oft, oft, oft])
    assert ways["geodesic"].refusal([oft, oft]) == ""


def test_what_is_wrong_with_a_knob_is_said_by_its_key(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    ids = [library.add(made(tmp_path / f"{n}.safetensors", n, trigger=f"t{n}")) for n in range(2)]
    asked = {"home": str(library.home), "base": "embedded", "ids": ids, "weights": [1, 1], "how": "least-squares"}
    refused = ask("fusion_request", options={"ridge": "-1", "background": "0.5"}, **asked)["refused"]
    assert refused["keys"] == {"ridge": "ridge is -1: it must be more than 0.0."}
    taken = ask("fusion_request", options={"background": "0.5"}, **asked)["answer"]
    assert taken["options"] == {"background": 0.5}


def test_a_file_that_has_gone_is_told_and_the_others_are_not_lost(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    ids = [library.add(made(tmp_path / f"{n}.safetensors", n, trigger=f"t{n}")) for n in range(2)]
    (library.folder / f"{ids[0]}.safetensors").unlink()
    found = ask("fusion_facts", home=str(library.home), ids=ids)["answer"]
    assert "vanished" in found[ids[0]]["trouble"]
    assert found[ids[1]]["triggers"] == ["t1"]


def test_a_report_in_words_has_every_subject_pair_and_block() -> None:
    net = small_net()
    _, report = fused(net, loras(net, 3), "sum")
    words = told(report)
    assert [line.about for line in words.subjects] == ["subject 0", "subject 1", "subject 2"]
    assert len(words.pairs) == len(words.columns) == 3
    assert len(words.rows) == len(words.cells) > 0
    assert all(len(cells) == 3 for cells in words.cells)
    assert f"{report.concepts[0].lost:.0%}" in words.subjects[0].text


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("unet.down_blocks.1.attentions.0", "down 1, attention 0"),
        ("unet.mid_block.attentions.0", "middle, attention 0"),
        ("text_encoder.text_model.encoder.layers.3", "text encoder, text_model encoder, layers 3"),
    ],
)
def test_blocks_have_names_that_people_can_read(block: str, words: str) -> None:
    assert in_words(block) == words


def test_columns_of_a_method_without_any_are_none(tmp_path: Path) -> None:
    assert fusion_check.columns_of(made(tmp_path / "a.safetensors")) == {}
