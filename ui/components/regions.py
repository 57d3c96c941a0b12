"""Regions of a picture, drawn as boxes on a canvas of its shape, each with a prompt.

canvas = regions_html(elem_id="regions")
canvas.input(…)                                  # take_regions(form, event) puts the texts that were drawn into it
return regions_markup(texts, size, phrases)      # its value
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any, Protocol, cast

import gradio as gr

from adapters.errors import UserInputError
from trainers.places import LARGEST, parse_region
from ui.components.markup import details, esc, live_html

_LONGEST = 600
_HINT = (
    "Drag on the picture to draw a region, and say what is in it. With the keyboard: add one, then use the arrow keys."
)


def regions_html(*, elem_id: str) -> gr.HTML:
    script = resources.files("ui").joinpath("assets", "regions.js").read_text(encoding="utf-8")
    return live_html(elem_id=elem_id, script=script)


def regions_markup(texts: Sequence[str], size: tuple[int, int], phrases: Sequence[str] = ()) -> str:
    """The canvas with these regions ("x0,y0,x1,y1: prompt"; what is no place is left out).

    Args:
        size: the picture's width and height, for the shape.
        phrases: what the prompts of regions are likely to say, a subject each.
    """
    width, height = size
    given, likely = json.dumps([one for text in texts if (one := _box(text))]), json.dumps(list(phrases))
    return (
        f'<div class="s-regions" data-regions="{esc(given)}" data-phrases="{esc(likely)}">'
        f'<p class="s-hint" id="regions-hint">{_HINT}</p>'
        f'<div class="s-canvas" role="group" aria-label="The picture" aria-describedby="regions-hint"'
        f' style="aspect-ratio: {width} / {height}; --shape: {width / height:.3f}"></div><ol class="s-places"></ol>'
        '<button type="button" class="s-button" data-add>Add a region</button>'
        '<datalist id="region-phrases"></datalist></div>'
    )


def _box(text: str) -> dict[str, Any] | None:
    """A region for the script; one without a prompt is one that is being written."""
    place, _, prompt = text.partition(":")
    try:
        region = parse_region(f"{place}: {prompt.strip() or '?'}")
    except UserInputError:
        return None
    return {"box": region.box, "prompt": prompt.strip()}


class HasRegions(Protocol):
    """A form with regions, and the turn in which they were told: which page, and how often it had told before."""

    regions: list[str]
    regions_told: str


def take_regions(form: HasRegions, event: gr.EventData) -> None:
    """The texts that were drawn (texts_of), unless the same page has told later ones: requests overtake each other."""
    told = details(event)
    (page, turn), (before, last) = _turn(told.get("turn", "")), _turn(form.regions_told)
    if page != before or turn > last:
        form.regions, form.regions_told = texts_of(told.get("value", "")), f"{page}:{turn}"


def _turn(text: str) -> tuple[str, int]:
    page, _, number = text[:40].partition(":")
    return page, int(number) if number.isascii() and number.isdecimal() else 0


def texts_of(value: str) -> list[str]:
    """Regions as the script tells them, LARGEST at most; from anybody, so they are still to be checked."""
    try:
        told: Any = json.loads(value)
    except ValueError:
        return []
    if not isinstance(told, list):
        return []
    return [text[:_LONGEST] for text in cast("list[Any]", told) if isinstance(text, str)][:LARGEST]
