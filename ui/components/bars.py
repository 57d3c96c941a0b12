"""Scores of pictures as small bars."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from studio.scores import Score
from ui.components.markup import esc

_NAMES = ("subject", "prompt")


def bar(score: Score, about: str = "") -> str:
    """Nothing where it is not known; `about` is said before it by a screen reader."""
    return "".join(_bar(name, value, about) for name, value in _known(score).items())


def mean_bar(scores: Sequence[Score]) -> str:
    """The mean of those that are known, and why others are not."""
    known = [_known(score) for score in scores]
    means = {name: fmean(one[name] for one in known if name in one) for one in known for name in one}
    bars = "".join(_bar(name, means[name], "on average ") for name in _NAMES if name in means)
    reasons = dict.fromkeys(why for score in scores for why in score.missing)
    return bars + "".join(f'<small class="s-quiet">{esc(why)}</small>' for why in reasons)


def _known(score: Score) -> dict[str, float]:
    values = {name: getattr(score, name) for name in _NAMES}
    return {name: value for name, value in values.items() if value is not None}


def _bar(name: str, value: float, about: str) -> str:
    shown = min(max(round(value), 0), 100)
    return (
        f'<span class="s-score"><span aria-hidden="true">{name}</span><b aria-hidden="true">{shown}</b>'
        f'<meter min="0" max="100" value="{shown}" aria-label="{about}{name} {shown} of 100"></meter></span>'
    )
