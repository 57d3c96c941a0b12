"""Scores as bars."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from studio.scores import Score
from studio.store import Drawing, SampleRequest
from ui.components.bars import bar, mean_bar


def test_a_bar_is_named_by_its_number() -> None:
    assert 'aria-label="subject 82 of 100"' in bar(Score(subject=81.6))
    both = bar(Score(subject=104, prompt=3.2))
    assert 'aria-label="subject 100 of 100"' in both and 'aria-label="prompt 3 of 100"' in both


def test_what_is_not_known_has_no_bar_but_a_reason() -> None:
    unknown = Score(missing=("Its pictures <are> gone.",))
    assert bar(unknown) == "" and mean_bar([]) == ""
    assert "Its pictures &lt;are&gt; gone." in mean_bar([unknown]) and "meter" not in mean_bar([unknown])


def test_a_rows_mean_is_of_what_is_known() -> None:
    told = mean_bar([Score(subject=50), Score(missing=("gone",)), Score(subject=100)])
    assert 'aria-label="on average subject 75 of 100"' in told


def test_a_request_without_scores_is_written_as_before_there_were_any() -> None:
    plain = SampleRequest(base="embedded", drawings=(Drawing(prompt="x", seed=1),))
    assert "scored" not in plain.model_dump_json()
    scored = plain.model_copy(update={"scored": True})
    assert [SampleRequest.model_validate_json(one.model_dump_json()) for one in (plain, scored)] == [plain, scored]
