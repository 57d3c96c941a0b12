"""Scores of pictures as small bars."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from studio.scores import Score
from ui.components.markup import esc


def bars(score: Score, about: str = "") -> str:
    """A bar a number that is known; `about` is said before each by a screen reader."""
    known = [("subject", score.subject), ("prompt", score.prompt)]
    return "".join(_bar(name, value, about) for name, value in known if value is not None)


def _bar(name: str, value: float, about: str) -> str:
    shown = min(max(round(value), 0), 100)
    return (
        f'<span class="s-score"><span aria-hidden="true">{name}</span><b aria-hidden="true">{shown}</b>'
        f'<meter min="0" max="100" value="{shown}" aria-label="{about}{name} {shown} of 100"></meter></span>'
    )


def mean(scores: Sequence[Score]) -> Score:
    """Of those numbers that are known."""
    return Score(
        subject=_mean([one.subject for one in scores]),
        prompt=_mean([one.prompt for one in scores]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def why_none(scores: Sequence[Score]) -> str:
    """Why there is no bar for the subject, or for the prompt."""
    told = [one.missing for one in scores if one.missing][:1]
    if all(one.prompt is None for one in scores):
        told.append("The prompts tell the base nothing.")
    return "".join(f'<small class="s-quiet">{esc(text)}</small>' for text in told)
