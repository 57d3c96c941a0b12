"""Regions of a picture as people write them, and what is to be in each. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.errors import UserInputError

LARGEST = 5
"""Subjects in one picture."""
AUTO = "auto"
"""Written in the place of regions: they are found while the picture is drawn."""
_NAMED = {
    "left half": (0.0, 0.0, 0.5, 1.0),
    "right half": (0.5, 0.0, 1.0, 1.0),
    "top half": (0.0, 0.0, 1.0, 0.5),
    "bottom half": (0.0, 0.5, 1.0, 1.0),
    "left third": (0.0, 0.0, 1 / 3, 1.0),
    "middle third": (1 / 3, 0.0, 2 / 3, 1.0),
    "right third": (2 / 3, 0.0, 1.0, 1.0),
    "everywhere": (0.0, 0.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class Region:
    """A part of the picture and what is in it."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom, as parts of the picture's sides."""
    prompt: str


def parse_region(text: str) -> Region:
    """ "left half: a sks cat", "0.5,0,1,1: a zwx car". Raises UserInputError."""
    place, colon, prompt = text.partition(":")
    known = ", ".join(_NAMED)
    fix = f'Write it like "left half: a sks cat" ({known}) or "0.5,0,1,1: a sks cat" (left, top, right, bottom).'
    if not colon or not prompt.strip():
        raise UserInputError(f'The region "{text}" lacks a place or a prompt.', fix)
    if (named := _NAMED.get(place.strip().lower())) is not None:
        return Region(named, prompt.strip())
    try:
        left, top, right, bottom = (float(part) for part in place.split(","))
    except ValueError as error:
        raise UserInputError(f'"{place.strip()}" is no place in a picture.', fix) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserInputError(
            f'The region "{place.strip()}" is not within 0 to 1, from left to right and top to bottom.', fix
        )
    return Region((left, top, right, bottom), prompt.strip())


def parse_regions(texts: Sequence[str]) -> list[Region]:
    """Every region. Raises UserInputError for more than LARGEST, or one that makes no sense."""
    if len(texts) > LARGEST:
        raise UserInputError(f"{len(texts)} regions are more than {LARGEST}.", "Leave some out.")
    return [parse_region(text) for text in texts]


def is_auto(regions: Sequence[str]) -> bool:
    """Whether regions are to be found. Raises UserInputError where some are given, too."""
    found = [region.strip().lower() == AUTO for region in regions]
    if any(found) and len(found) > 1:
        raise UserInputError("Regions are found or given, not both.", "Use --region auto alone, or places alone.")
    return any(found)
