"""What a combination means, without a browser: who fits whom, fields, places, and what is asked of the queue."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from studio.queue import Queue, Submission
from studio.store import FuseRequest, LibraryAdapter
from trainers.places import parse_regions
from ui import combination
from ui.combination import Combination, Part, Subject
from ui.combining import key_of
from ui.components.combine_form import subjects_markup
from ui.components.fusion_view import report_markup

BASES = ("embedded",)


def subject(number: int, trigger: str = "", **more: Any) -> Subject:
    told = {"class_word": "dog", "method": "lora", "base": "embedded", "base_hash": "h", **more}
    schedule, fused = told.pop("schedule", "epsilon"), told.pop("fused", False)
    entry = LibraryAdapter(
        id=f"{number:064x}", name=f"no. {number}", trigger=trigger, file="x", created=datetime.now(UTC), **told
    )
    return Subject(entry, schedule, (trigger,) if trigger else (), fused)


def form_of(*subjects: Subject, **more: Any) -> Combination:
    return Combination(id="a" * 10, parts=[Part(adapter=one.entry.id) for one in subjects], **more)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (subject(2, "zwx"), ""),
        (subject(2, "sks"), "the same trigger"),
        (subject(2, "zwx", base_hash="g"), "another version of the base"),
        (subject(2, "zwx", base="else", base_hash="g"), "not offered here"),
        (subject(2, "zwx", schedule="v_prediction"), "v_prediction"),
        (subject(2, "zwx", base="", base_hash="", schedule=""), ""),
    ],
)
def test_an_adapter_that_does_not_fit_says_why(other: Subject, reason: str) -> None:
    found = combination.why_not(other, [subject(1, "sks")], BASES)
    assert bool(found) == bool(reason)
    assert reason in found


def test_a_sixth_subject_is_refused() -> None:
    chosen = [subject(number, f"t{number}") for number in range(5)]
    assert combination.why_not(subject(9, "zwx"), chosen, BASES) == "5 are the most."


def test_a_refused_card_is_greyed_and_hides_no_markup() -> None:
    other = subject(2, "<b>")
    markup = subjects_markup([other], form_of(), {other.entry.id: "<i>no</i>"}, "")
    assert " disabled" in markup
    assert "<b>dog" not in markup and "<i>" not in markup


def test_what_is_usual_is_not_kept_so_that_it_follows_the_choice() -> None:
    form = form_of(subject(1, "sks"), subject(2, "zwx"))
    combination.put(form, "prompt", "a sks dog", usual="a sks dog")
    assert form.prompt == ""
    combination.put(form, "prompt", "two dogs", usual="a sks dog")
    assert form.prompt == "two dogs"


@pytest.mark.parametrize(("text", "weight"), [("0.5", 0.5), ("9", 1.5), ("nan", 1.0), ("much", 1.0), ("-1", 0.0)])
def test_a_strength_stays_within_its_slider(text: str, weight: float) -> None:
    one = subject(1, "sks")
    form = form_of(one)
    combination.put(form, "weight", text, adapter=one.entry.id)
    assert form.weights == [weight]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_usual_regions_cover_the_picture_without_meeting(count: int) -> None:
    subjects = [subject(number, f"t{number}") for number in range(count)]
    texts = combination.usual_regions(subjects)
    boxes = [region.box for region in parse_regions(texts)]
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) == pytest.approx(1, abs=1e-2)
    assert combination.wrong_regions(texts, subjects) == ""
    assert len({text.rpartition("dog")[2] for text in texts}) == count  # each is told where it is


def test_a_region_that_names_nobody_is_told() -> None:
    subjects = [subject(1, "sks"), subject(2, "zwx"), subject(3, fused=True)]
    assert "No region says zwx" in combination.wrong_regions(["0,0,1,1: a sks dog"], subjects)
    assert "Several regions say sks" in combination.wrong_regions(["0,0,1,1: sks", "0,0,1,1: sks and zwx"], subjects)
    assert "place" in combination.wrong_regions(["0,0,1,1:"], subjects)


def test_every_picture_of_the_preview_has_one_prompt_and_one_seed() -> None:
    subjects = [subject(1, "sks"), subject(2, "zwx")]
    found = combination.pictures(form_of(*subjects, apart=True), subjects, 7, "f" * 64)
    drawings = [drawing for request, _ in found for drawing in request.drawings]
    assert {(one.prompt, one.seed) for one in drawings} == {("a sks dog on the left and a zwx dog on the right", 7)}
    assert [len(one.uses) for one in drawings] == [2, 1, 2, 1, 1]
    assert [bool(request.regions) for request, _ in found] == [True, False]


def test_one_form_pressed_twice_is_one_fusion_and_a_changed_one_another() -> None:
    form = form_of(subject(1, "sks"), subject(2, "zwx"))
    first = key_of(form)
    form.prompt = "a picture's words are not the fusion's"
    assert key_of(form) == first
    form.parts[0].weight = 0.5
    assert key_of(form) != first


def test_a_report_hides_no_markup(tmp_path: Path) -> None:
    told = {
        "verdict": "<u>", "level": "note", "subjects": [{"about": "<u>", "text": "<u>", "level": "note"}], "pairs": [],
        "others": "<u>", "measure": "<u>", "columns": ["<u>"], "rows": ["<u>"], "cells": [[0.5]],
    }  # fmt: skip
    queue = Queue(tmp_path)
    request = FuseRequest(base="embedded", adapters=("lib:a", "lib:b"), how="sum")
    job = queue.get_job(queue.submit(Submission(request=request, title="<u>")))
    markup = report_markup(job, None, told)
    assert "<u>" not in markup
    assert markup.count("&lt;u&gt;") == 8
