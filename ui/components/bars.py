"""Scores of pictures as small bars."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from studio.scores import Score
from ui.components.markup import esc


def bar(score: Score, about: str = "") -> str:
    """Nothing where it is not known; `about` is said before it by a screen reader."""
    return "" if score.subject is None else _bar(score.subject, about)


def mean_bar(scores: Sequence[Score]) -> str:
    """The mean of those that are known, and why others are not."""
    known = [score.subject for score in scores if score.subject is not None]
    why = next((score.missing for score in scores if score.missing), "")
    told = f'<small class="s-quiet">{esc(why)}</small>' if why else ""
    return (_bar(fmean(known), "on average ") if known else "") + told


def _bar(value: float, about: str) -> str:
    shown = min(max(round(value), 0), 100)
    return (
        f'<span class="s-score"><span aria-hidden="true">subject</span><b aria-hidden="true">{shown}</b>'
        f'<meter min="0" max="100" value="{shown}" aria-label="{about}subject {shown} of 100"></meter></span>'
    )
