"""Regions of `studio sample --region`: which adapter belongs to which, and drawing by them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch

from adapters.adapter_set import AdapterSet
from adapters.errors import UserInputError
from adapters.formats.open import AnyFile
from trainers.captions import has_word
from trainers.places import Region
from trainers.regions import Placed, Regional, alone, region_masks, regional_sampling
from trainers.sdxl import Base


def places(regions: Sequence[Region], files: Sequence[AnyFile], sets: Sequence[AdapterSet]) -> Placed:
    """Adapter sets with the number of their region: where its prompt says their trigger, else in order.

    A fused adapter, and one that no region speaks of, acts everywhere. Raises UserInputError where several do.
    """
    placed: list[tuple[AdapterSet, int]] = []
    for number, (file, adapters) in enumerate(zip(files, sets, strict=True)):
        trigger, fused = file.card.trigger, bool(file.card.concepts)
        said = [n for n, region in enumerate(regions) if trigger and has_word(region.prompt, trigger)]
        if len(said) > 1:
            raise UserInputError(f"Several regions say {trigger}.", "Say each subject in one region.")
        if said:
            placed.append((adapters, said[0]))
        elif not trigger and not fused and len(sets) == len(regions):
            placed.append((adapters, number))
    return placed


@contextmanager
def drawing_regions(
    base: Base, regions: Sequence[Region], placed: Placed, size: tuple[int, int], guided: bool
) -> Generator[None]:
    """Within, the base draws by regions (trainers.regions); `size` is width, height in pixels."""
    contexts: list[torch.Tensor] = []
    for number, region in enumerate(regions):
        with alone(placed, number):
            contexts.append(base.encode_texts([region.prompt]).context)
    width, height = (side // base.scale_factor for side in size)
    masks = region_masks(regions, height, width).to(base.device)
    with regional_sampling(base.unet, Regional(masks[None], torch.stack(contexts), guided), placed):
        yield
