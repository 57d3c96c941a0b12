"""The speed table renders from its JSON, and the peers adapt the layers that we adapt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import scale, subjects
from benchmarks.speed.measure import step_flops
from benchmarks.speed.model import Setting
from benchmarks.speed.ours import OurStep
from benchmarks.speed.peers import PeerStep
from benchmarks.speed.run import summary
from benchmarks.speed.sections import Bar
from benchmarks.speed.table import judge, write_page

TINY = Setting(1, torch.device("cpu"), torch.float32, tiny=True)


def _results(**ms: float) -> dict[str, Any]:
    taken = {"setup_s": 1.0, "allocated_gib": 9.0, "reserved_gib": 10.0, "trainable": 5, "note": ""}
    rows = {name.replace("_", " "): summary([{**taken, "ms": [value] * 3}]) for name, value in ms.items()}
    rows["LyCORIS LoRA"] = {"rounds": [], "failed": "RuntimeError: no"}
    about = {"device": "H100", "date": "today", "tiny": False, "versions": {"torch": "2"}}
    return {"headline-1": {**about, "ceiling_tflops": 700.0, "step_tflop": 14.0, "rows": rows}}


def test_page_keeps_what_is_written_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("# Speed\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n## Log\nmine\n")
    write_page(_results(PEFT_LoRA=600.0, **{"ours:_LoRA": 50.0}), page)
    text = page.read_text()
    assert text.startswith("# Speed\n") and text.endswith("## Log\nmine\n") and "old" not in text
    assert "times as fast as PEFT LoRA | ≥ 9 | 12.00 | met |" in text
    assert "| LyCORIS LoRA | RuntimeError: no |" in text
    assert "| ours: LoRA | 50.0 | 50.0–50.0 | 50.0 | 1.00 | 40 % |" in text


@pytest.mark.parametrize(("limit", "met"), [(0.5, True), (0.4, False)])
def test_a_bar_is_met_up_to_its_limit(limit: float, met: bool) -> None:
    assert judge(Bar("headline-1", "a", limit, over="b"), _results(a=1.0, b=2.0)) == (0.5, met)


@pytest.mark.parametrize("kind", ["peft-lora", "peft-dora", "lycoris-lora"])
def test_peers_train_as_many_numbers_as_we_do(kind: str) -> None:
    pytest.importorskip("lycoris" if kind.startswith("lycoris") else "peft")
    ours = OurStep(TINY, kind.partition("-")[2])
    assert PeerStep(TINY, kind).trainable == ours.trainable > 0


def test_lycoris_lokr_is_on_every_attention_layer() -> None:
    pytest.importorskip("lycoris")
    peer, ours = PeerStep(TINY, "lycoris-lokr"), OurStep(TINY)
    assert len(peer.network.loras) == len(ours.engine.adapter.adapters)


@pytest.mark.parametrize(("shared", "said"), [(104.0, "1.92 times"), (106.0, "1.89 times")])
def test_gpus_are_compared_by_pictures_a_second_and_the_slowest_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared: float, said: str
) -> None:
    taken = {1: {"alone_ms": [100.0]}, 2: {"alone_ms": [100.0, 90.0], "shared_ms": [95.0, shared]}}
    taken[1]["device"] = ["a card"]
    monkeypatch.setattr(scale, "_in_new_processes", lambda count, *others: dict(taken[count]))
    scale.keep(scale.compare(2, 4, steps=1, rounds=2), tmp_path / "scale.json")
    assert f"{said} as many pictures a second (the bar is 1.9: {'met' if shared < 105 else 'NOT met'})" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "scale.json").read_text())["2 × a card"]["one_ms"] == 100.0


@pytest.mark.parametrize(("ratio", "met"), [(1.91, True), (1.89, False)])
def test_subjects_an_hour_are_judged_by_the_number_of_gpus_and_kept_by_their_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: float, met: bool
) -> None:
    subjects.keep({"gpus": {1: {}, 2: {}}, "ratio": ratio, "tiny": False, "device": "a card"}, tmp_path / "found.json")
    assert f"(the bar is 1.90: {'met' if met else 'NOT met'})" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["2 × a card"]["ratio"] == ratio


def test_arithmetic_grows_with_the_batch() -> None:
    one, two = (step_flops(Setting(n, TINY.device, TINY.dtype, tiny=True)) for n in (1, 2))
    assert one > 0 and two == pytest.approx(2 * one, rel=0.02)
