"""`studio sample --region auto`: the subjects of adapter files, and pictures of where they were found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from adapters.adapter_set import AdapterSet
from adapters.atomic import atomic_path
from adapters.errors import UserInputError
from adapters.formats.open import AnyFile
from trainers.auto_regions import AutoRegions
from trainers.mentions import Subject, mentions
from trainers.places import LARGEST
from trainers.sdxl import Base

_NOBODY = (0, 0, 0)
_COLORS = {
    "red": (230, 60, 60),
    "green": (60, 200, 80),
    "blue": (70, 90, 240),
    "yellow": (240, 200, 60),
    "purple": (200, 80, 220),
}


class FoundRegions:
    """The `routing` of generate for adapters that are attached, and what to tell of it.

    A file without a trigger acts everywhere, and so does a fused one: of that, prompts alone go by region.

    Raises UserInputError where subjects are not two to five, cannot be told apart, or are not in a prompt.
    """

    def __init__(
        self, base: Base, prompts: Sequence[str], files: Sequence[AnyFile], sets: Sequence[AdapterSet],
        size: tuple[int, int], steps: int, guided: bool,
    ) -> None:  # fmt: skip
        if steps < 2:
            raise UserInputError("--region auto looks at the first of several steps.", "Draw with --steps 10 or more.")
        self.subjects: list[Subject] = []
        placed: list[tuple[AdapterSet, int]] = []
        fused: list[AdapterSet] = []
        for file, adapters in zip(files, sets, strict=True):
            if file.card.concepts:
                self.subjects += [Subject(one.trigger, one.class_word) for one in file.card.concepts if one.trigger]
                fused.append(adapters)
            elif file.card.trigger:
                placed.append((adapters, len(self.subjects)))
                self.subjects.append(Subject(file.card.trigger, file.card.class_word))
        _check(self.subjects)
        self.routing = AutoRegions(base, prompts, self.subjects, placed, fused, size, guided)
        self.warnings = _unsaid_classes(prompts, self.subjects)

    @property
    def legend(self) -> str:
        """Which colour is whose in the pictures of masks."""
        colors = ", ".join(f"{color} {subject}" for color, subject in zip(_COLORS, self.subjects, strict=False))
        return f"Where they were found (…-regions.png): {colors}."

    def unplaced(self, number: int) -> list[str]:
        """The subjects that the picture of that number has no place for, in words."""
        masks = self.routing.masks[number]
        return [str(one) for one, mask in zip(self.subjects, masks, strict=True) if not mask.any()]

    def save(self, picture: Path, number: int, size: tuple[int, int]) -> None:
        """The masks of the picture of that number beside it, in `size`: width and height in pixels."""
        masks = self.routing.masks[number]
        owners = (masks * torch.arange(1, len(masks) + 1)[:, None, None]).sum(0).byte()
        image = Image.fromarray(owners.numpy()).convert("P")
        image.putpalette([part for color in (_NOBODY, *_COLORS.values()) for part in color])
        with atomic_path(picture.with_name(f"{picture.stem}-regions.png")) as temporary:
            image.resize(size, Image.Resampling.NEAREST).save(temporary, format="PNG", optimize=True)


def _check(subjects: Sequence[Subject]) -> None:
    if len(subjects) < 2:
        known = f"only {subjects[0]}" if subjects else "none"
        raise UserInputError(
            f"--region auto tells two subjects or more apart; the cards of these adapters name {known}.",
            "Give several adapters, or one that was fused of several; studio info FILE tells what a card names.",
        )
    if len(subjects) > LARGEST:
        raise UserInputError(f"{len(subjects)} subjects are more than {LARGEST}.", "Leave some adapters out.")
    triggers = [subject.trigger.lower() for subject in subjects]
    for trigger in triggers:
        if triggers.count(trigger) > 1:
            raise UserInputError(f"Several of these subjects are called {trigger}.", "Train one by another trigger.")


def _unsaid_classes(prompts: Sequence[str], subjects: Sequence[Subject]) -> list[str]:
    """A sentence for each subject whose trigger stands in a prompt without its class word."""
    return [
        f'The prompt "{prompt}" says {one.trigger} but not what it is, and so its place is hard to find: '
        f'say "{one.trigger} {one.class_word or "cat"}", or whatever it is.'
        for prompt in dict.fromkeys(prompts)
        for one in subjects
        if all(mention.word is None for mention in mentions(prompt, one))
    ]
