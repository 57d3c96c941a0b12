"""What is to be combined: the form on the disk, who fits whom, and what is asked of the queue. No Gradio, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from adapters.errors import UserInputError
from studio.paths import LIBRARY_PREFIX
from studio.store import Drawing, LibraryAdapter, SampleRequest, Use
from trainers.captions import has_word
from trainers.places import LARGEST, Region, parse_regions
from ui.forms import Form

HEAVIEST = 1.5
_LONGEST = 500
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as parts of the picture's sides."""


class Part(BaseModel):
    """One subject of the combination, by its id in the library."""

    adapter: str
    weight: float = 1.0


class Shown(BaseModel):
    """A picture of the preview: that number of that job."""

    label: str
    job: str
    number: int


class Combination(Form):
    """All that the form holds; `options` are texts by the ways' knobs, "" as `how` is what is recommended."""

    parts: list[Part] = Field(default_factory=list[Part])
    apart: bool = False
    """Each in its own region, in the place of one file."""
    how: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    regions: list[str] = Field(default_factory=list)
    """As they were drawn (ui.components.regions); none: the usual ones."""
    regions_told: str = ""
    prompt: str = ""
    seed: str = "1"
    job: str = ""
    """The fusion that was started last."""
    shown: list[Shown] = Field(default_factory=list[Shown])

    @property
    def ids(self) -> list[str]:
        return [part.adapter for part in self.parts]

    @property
    def weights(self) -> list[float]:
        return [part.weight for part in self.parts]


@dataclass(frozen=True)
class Subject:
    """An adapter of the library, and what its file tells besides (studio.fusion_check.Facts)."""

    entry: LibraryAdapter
    schedule: str = ""
    triggers: tuple[str, ...] = ()
    fused: bool = False
    trouble: str = ""
    """Why its file cannot be used, if so."""

    @property
    def label(self) -> str:
        entry = self.entry
        if self.fused:
            return entry.name
        return " ".join(filter(None, (entry.trigger, entry.class_word))) or entry.name


def why_not(one: Subject, chosen: Sequence[Subject], bases: Collection[str]) -> str:
    """Why `one` cannot join those chosen, in a sentence; "" where it may."""
    if one.trouble:
        return one.trouble
    if one.entry.base and one.entry.base not in bases:
        return f"Its base, {one.entry.base}, is not offered here (studio ui --base)."
    for other in chosen:
        if reason := _quarrel(one, other):
            return reason
    return f"{LARGEST} are the most." if len(chosen) >= LARGEST else ""


def _quarrel(one: Subject, other: Subject) -> str:
    hashes = {one.entry.base_hash, other.entry.base_hash} - {""}
    if len(hashes) > 1:
        same = one.entry.base == other.entry.base
        return f"Made on another {'version of the base' if same else 'base'} than {other.label}."
    if one.schedule and other.schedule and one.schedule != other.schedule:
        return f"Predicts something else ({one.schedule}) than {other.label} ({other.schedule})."
    shared = [trigger for trigger in one.triggers if trigger in other.triggers]
    return f"Has the same trigger as {other.label}: {shared[0]}." if shared else ""


# --- fields -----------------------------------------------------------------------------------------------


def put(form: Combination, field: str, value: str, *, adapter: str = "", key: str = "", usual: str = "") -> None:
    """Takes a field's text over; what makes no sense is left as it was, but for texts that are judged later.

    Args:
        usual: what the field shows where nobody wrote anything: kept as "", so that it follows the choice of subjects.
    """
    part = next((one for one in form.parts if one.adapter == adapter), None)
    text = " ".join(value.split())[:_LONGEST]
    text = "" if text == usual else text
    if field == "weight" and part is not None:
        part.weight = _weight(value, part.weight)
    elif field == "mode":
        form.apart = value == "apart"
    elif field == "how":
        form.how = text
    elif field == "knob" and key:
        form.options[key] = text
    elif field == "prompt":
        form.prompt = text
    elif field == "seed":
        form.seed = text[:20]


def choose(form: Combination, adapter: str, chosen: bool) -> None:
    """Adds a subject, or takes it away; the others keep their strength, and regions begin anew."""
    form.regions = []
    if not chosen:
        form.parts = [part for part in form.parts if part.adapter != adapter]
    elif adapter not in form.ids and len(form.parts) < LARGEST:
        form.parts.append(Part(adapter=adapter))


def _weight(text: str, before: float) -> float:
    try:
        found = float(text)
    except ValueError:
        return before
    return min(HEAVIEST, max(0.0, found)) if math.isfinite(found) else before


def seed_of(form: Combination) -> int | None:
    """The seed as a number; None where it is none."""
    text = form.seed
    return int(text) if text.isascii() and text.isdigit() and int(text) < 2**63 else None


# --- words and places -------------------------------------------------------------------------------------


def boxes(count: int) -> list[Box]:
    """Regions of one size beside each other: a row of up to three, else two rows."""
    if count <= 3:
        return [_cell(place, count, 0, 1) for place in range(count)]
    upper = (count + 1) // 2
    top = [_cell(place, upper, 0, 2) for place in range(upper)]
    return top + [_cell(place, count - upper, 1, 2) for place in range(count - upper)]


def _cell(column: int, columns: int, row: int, rows: int) -> Box:
    left, right = round(column / columns, 3), round((column + 1) / columns, 3)
    return left, row / rows, right, (row + 1) / rows


def where(box: Box) -> str:
    """A place in words, as prompts say it: the layout of a picture comes from them."""
    left, top, right, bottom = box
    across, down = (left + right) / 2, (top + bottom) / 2
    side = "on the left" if across < 0.42 else "on the right" if across > 0.58 else "in the middle"
    if bottom - top > 0.7:
        return side
    return f"{side} at the {'top' if down < 0.42 else 'bottom' if down > 0.58 else 'centre'}"


def phrases(subjects: Sequence[Subject]) -> list[str]:
    """What is said of each where nobody wrote anything: "a sks octopus on the left"."""
    places = boxes(len(subjects))
    return [f"a {one.label} {where(box)}" for one, box in zip(subjects, places, strict=True)]


def usual_prompt(subjects: Sequence[Subject]) -> str:
    return _listed(phrases(subjects))


def named(subjects: Sequence[Subject]) -> str:
    """ "sks octopus, hta cat and zwx rocket" """
    return _listed([one.label for one in subjects])


def _listed(told: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(told[:-1]), *told[-1:])))


def placeable(subjects: Sequence[Subject]) -> list[Subject]:
    """Those that can be kept to a region: adapters without a trigger, such as styles, and fused ones act everywhere."""
    return [one for one in subjects if one.triggers and not one.fused]


def usual_regions(subjects: Sequence[Subject]) -> list[str]:
    """A region for each that can have one, as `studio sample --region` takes them."""
    found = placeable(subjects)
    told = zip(boxes(len(found)), phrases(found), strict=True)
    return [f"{','.join(f'{edge:g}' for edge in box)}: {phrase}" for box, phrase in told]


def wrong_regions(texts: Sequence[str], subjects: Sequence[Subject]) -> str:
    """Why these regions will not do; "" where they will."""
    try:
        found = parse_regions(texts)
    except UserInputError as error:
        return error.what
    if not found:
        return "Draw a region for each subject."
    for one in placeable(subjects):
        said = [region for region in found if _says(region, one)]
        if len(said) != 1:
            which = "No region says" if not said else "Several regions say"
            return f"{which} {one.triggers[0]}: write it into the prompt of one region."
    return ""


def _says(region: Region, subject: Subject) -> bool:
    return any(has_word(region.prompt, trigger) for trigger in subject.triggers)


# --- requests ---------------------------------------------------------------------------------------------


def base_of(subjects: Sequence[Subject]) -> str:
    """The base that they were made on, or the built-in one where none tells (as studio.sampling.common_base)."""
    return next((one.entry.base for one in subjects if one.entry.base), "embedded")


def pictures(
    form: Combination, subjects: Sequence[Subject], seed: int, fused: str
) -> list[tuple[SampleRequest, list[str]]]:
    """The preview's jobs, with a label a picture: one prompt and seed by each way to have them together, and alone.

    Args:
        fused: library id of the fused adapter; "" before there is one.
    """
    prompt = form.prompt or usual_prompt(subjects)
    together = tuple(Use(adapter=LIBRARY_PREFIX + part.adapter, strength=part.weight) for part in form.parts)
    whole: list[tuple[str, tuple[Use, ...]]] = [("Side by side (the plain sum)", together)]
    if fused:
        whole.insert(0, ("In one file", (Use(adapter=LIBRARY_PREFIX + fused),)))
    whole += [(f"{one.label} alone", (use,)) for one, use in zip(subjects, together, strict=True)]
    base = base_of(subjects)
    drawings = tuple(Drawing(prompt=prompt, seed=seed, uses=uses) for _, uses in whole)
    found = [(SampleRequest(base=base, drawings=drawings), [label for label, _ in whole])]
    if form.apart:
        drawing = Drawing(prompt=prompt, seed=seed, uses=together)
        placed = SampleRequest(base=base, drawings=(drawing,), regions=tuple(form.regions or usual_regions(subjects)))
        found.insert(0, (placed, ["Each in its own region"]))
    return found
