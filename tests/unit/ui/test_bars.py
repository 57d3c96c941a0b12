"""Scores as bars."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from studio.scores import Score
from studio.store import Drawing, SampleRequest
from ui.components.bars import bars, mean, why_none


def test_a_bar_is_named_by_its_number() -> None:
    told = bars(Score(subject=81.6, prompt=140))
    assert 'aria-label="subject 82 of 100"' in told and 'aria-label="prompt 100 of 100"' in told


def test_what_is_not_known_has_no_bar_but_a_reason() -> None:
    unknown = Score(prompt=0, missing="Its pictures <are> gone.")
    assert "subject" not in bars(unknown)
    assert "Its pictures &lt;are&gt; gone." in why_none([unknown]) and "tell the base nothing" not in why_none([unknown])


def test_a_rows_mean_is_of_what_is_known() -> None:
    assert mean([Score(subject=50), Score(subject=100, prompt=30)]) == Score(subject=75, prompt=30)


def test_a_request_without_scores_is_written_as_before_there_were_any() -> None:
    plain = SampleRequest(base="embedded", drawings=(Drawing(prompt="x", seed=1),))
    assert "scored" not in plain.model_dump_json()
    scored = plain.model_copy(update={"scored": True})
    assert [SampleRequest.model_validate_json(one.model_dump_json()) for one in (plain, scored)] == [plain, scored]
