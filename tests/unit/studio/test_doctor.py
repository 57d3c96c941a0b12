"""What the doctor says of a machine."""

from __future__ import annotations

import pytest

from studio import doctor
from studio.doctor import Gpu, examine, recommended_preset


def card(total: float) -> Gpu:
    return Gpu("a card", total, total, bf16=True)


def told(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> str:
    monkeypatch.setattr(doctor, "gpus", lambda: list(gpus))
    return "\n".join(finding.text for finding in examine())


@pytest.mark.parametrize(
    ("memory", "preset"),
    [(80, "best"), (24, "best"), (16, "balanced"), (12, "balanced"), (8, "small-gpu"), (6, "low-memory"), (3, None)],
)
def test_the_preset_suits_the_card(memory: float, preset: str | None):
    assert recommended_preset([card(memory)]) == preset


def test_the_largest_card_counts():
    assert recommended_preset([card(8), card(24)]) == "best"


def test_without_a_card_it_says_what_works_and_what_does_not(monkeypatch: pytest.MonkeyPatch):
    text = told(monkeypatch)
    assert "Can train and draw with the embedded base" in text
    assert "Cannot train SDXL" in text


def test_it_says_which_attention_works_and_why_others_do_not(monkeypatch: pytest.MonkeyPatch):
    text = told(monkeypatch)
    assert "Attention that works here (--set attention=…): sdpa." in text
    assert "Attention by flash does not work here: it needs an NVIDIA GPU." in text


def test_a_small_card_is_told_a_way(monkeypatch: pytest.MonkeyPatch):
    assert "data.resolution=512" in told(monkeypatch, card(3))


def test_it_tells_python_torch_cores_memory_and_disk(monkeypatch: pytest.MonkeyPatch):
    text = told(monkeypatch, card(24))
    for word in ("Python 3", "torch 2", "CPU cores", "GiB of memory", "Disk of the cache", "a card", "bf16"):
        assert word in text


def test_several_cards_are_told_how_to_share_a_run(monkeypatch: pytest.MonkeyPatch):
    assert "2 GPUs can share a run: studio train … --gpus 2." in told(monkeypatch, card(24), card(24))
    assert "share a run" not in told(monkeypatch, card(24))
