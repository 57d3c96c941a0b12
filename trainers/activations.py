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
    base: Base,
    changes: Changes,
    prompts: Sequence[Sequence[str]],
    *,
    samples: int = 0,
    steps: int = 8,
    seed: int = 0,
) -> Iterator[Progress | dict[str, LayerGrams]]:
    """Draws each concept's prompts with its adapter, and neutral ones with the bare base, and watches.

    Args:
        prompts: one list a concept, in the order of `changes`, and one of neutral prompts last.
        samples: inputs of each layer to keep of each list of prompts.
        steps: denoising steps of a picture: so many noise levels are seen.

    Yields:
        Progress, and at the end the moments of every layer.
    """
    watched, found = changes.watched(), list[Mapping[str, Tensor]]()
    inputs: list[Mapping[str, Tensor]] = []
    for concept, texts in zip([*changes.concepts, None], prompts, strict=True):
        if concept is not None:
            concept.adapters.attach()
        try:
            with gathering(watched, samples) as moments:
                seeds = range(seed, seed + len(texts))
                for _ in generate(base, texts, seeds=seeds, inference_steps=steps, batch_size=len(texts)):
                    pass
        finally:
            if concept is not None:
                concept.adapters.detach()
        found.append(moments.mean())
        inputs.append(moments.sampled())
        yield Progress(stage="prompts", done=len(found), total=len(prompts))
    yield {
        name: LayerGrams(
            [found[number][name] for number in present],
            found[-1][name],
            [inputs[number][name] for number in (*present, -1)] if samples else (),
        )
        for name, present in changes.deltas.items()
        if name in found[-1]
    }
