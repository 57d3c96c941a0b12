"""What a base's layers are given on prompts, as second moments of what adapters look at (adapters.fusion.grams)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from adapters.fusion.fuse import Changes
from adapters.fusion.grams import gathering
from adapters.fusion.way import LayerGrams
from trainers.events import Progress
from trainers.sdxl import Base, generate


@torch.no_grad()
def gather(
    base: Base, changes: Changes, prompts: Sequence[Sequence[str]], *, steps: int = 8, seed: int = 0
) -> Iterator[Progress | dict[str, LayerGrams]]:
    """Draws each concept's prompts with its adapter, and neutral ones with the bare base, and watches.

    Args:
        prompts: one list a concept, in the order of `changes`, and one of neutral prompts last.
        steps: denoising steps of a picture: so many noise levels are seen.

    Yields:
        Progress, and at the end the moments of every layer.
    """
    watched, found = changes.watched(), list[Mapping[str, Tensor]]()
    for concept, texts in zip([*changes.concepts, None], prompts, strict=True):
        if concept is not None:
            concept.adapters.attach()
        try:
            with gathering(watched) as moments:
                seeds = range(seed, seed + len(texts))
                for _ in generate(base, texts, seeds=seeds, inference_steps=steps, batch_size=len(texts)):
                    pass
        finally:
            if concept is not None:
                concept.adapters.detach()
        found.append(moments.mean())
        yield Progress(stage="prompts", done=len(found), total=len(prompts))
    yield {
        name: LayerGrams([found[number][name] for number in present], found[-1][name])
        for name, present in changes.deltas.items()
        if name in found[-1]
    }
