"""A verdict on each picture of a set, in a few words, for whoever chooses them. Imports no torch.

The same checks as `trainers.images.find_pictures`, which speaks of whole folders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.images import ImageChecks, Inspected, nearly_same


@dataclass(frozen=True)
class Verdict:
    """`good`, or what may be the matter with a picture; any of them can be learnt from."""

    good: bool
    text: str


def verdicts(pictures: Sequence[Inspected], checks: ImageChecks, resolution: int) -> list[Verdict]:
    """One a picture, in order; texts count pictures from 1. `resolution`: side of the training square in pixels."""
    return [_verdict(place, pictures, checks, resolution) for place in range(len(pictures))]


def _verdict(place: int, pictures: Sequence[Inspected], checks: ImageChecks, resolution: int) -> Verdict:
    one = pictures[place]
    faults = [
        _same(one, pictures[:place], checks),
        "blurry" if one.sharpness < checks.blur_threshold else "",
        _small(one, checks, resolution),
    ]
    found = [fault for fault in faults if fault]
    return Verdict(not found, ", ".join(found) or "good")


def _same(one: Inspected, earlier: Sequence[Inspected], checks: ImageChecks) -> str:
    for number, other in enumerate(earlier, 1):
        if one.picture.sha256 == other.picture.sha256:
            return f"the same file as no. {number}"
        if nearly_same(one, other, checks.near_duplicate_bits):
            return f"nearly the same as no. {number}"
    return ""


def _small(one: Inspected, checks: ImageChecks, resolution: int) -> str:
    width, height = one.picture.width, one.picture.height
    if resolution / math.sqrt(width * height) <= checks.max_upscale:
        return ""
    return f"only {min(width, height)} px"
