"""`--region auto`: the first steps of a picture show where its subjects will be; each adapter then acts there alone.

After FreeFuse (arXiv 2510.23515), but within the one pass there is: the first fifth of the steps is the base's own,
with the subjects' adapters off, and what its cross-attention to their words tells routes the steps that follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.adapter_set import AdapterSet
from trainers.attention_maps import subject_masks, watching
from trainers.fast.sampling import recorded
from trainers.mentions import Subject, without, word_weights
from trainers.regions import Placed, Regional, alone, muted, regional_sampling
from trainers.sdxl import Base

EARLY = 0.2
"""The part of the steps that looks for subjects."""


class AutoRegions:
    """The `routing` of trainers.sdxl.generate for these prompts; each batch's masks are its own.

    Args:
        prompts: as generate is given them.
        placed: adapter sets with the number of the subject that each learnt.
        fused: sets that learnt several subjects: they act everywhere, but not while subjects are looked for.
        size: width and height of the pictures in pixels.
        guided: whether generate draws with guidance.
    """

    def __init__(
        self, base: Base, prompts: Sequence[str], subjects: Sequence[Subject], placed: Placed,
        fused: Sequence[AdapterSet], size: tuple[int, int], guided: bool,
    ) -> None:  # fmt: skip
        self._base, self._placed, self._fused, self._guided = base, placed, fused, guided
        self._width, self._height = (side // base.scale_factor for side in size)
        weights = [[word_weights(base.pipe.tokenizer, prompt, one) for one in subjects] for prompt in prompts]
        self._words = torch.tensor(weights, device=base.device)
        contexts: list[Tensor] = []
        for number, one in enumerate(subjects):
            others = [other for other in subjects if other is not one]
            with alone(placed, number):
                contexts.append(base.encode_texts([without(prompt, others) for prompt in prompts]).context)
        self._contexts = torch.stack(contexts)
        self.masks: list[Float[Tensor, "n h w"]] = []
        """Of every picture drawn so far, each subject's."""

    @contextmanager
    def batch(self, rows: slice) -> Generator[Callable[..., dict[str, Any]]]:
        """Within, pictures `rows` are drawn; yields what diffusers' pipeline is to call after each step."""
        unet, words, maps = self._base.unet, self._words[rows], list[Tensor]()
        with ExitStack() as drawing, ExitStack() as looking:
            looking.enter_context(muted([*(adapters for adapters, _ in self._placed), *self._fused]))
            seen = looking.enter_context(watching(unet, self._height, self._width))

            def after_step(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
                last = math.ceil(EARLY * len(pipe.scheduler.timesteps)) - 1
                if step <= last:
                    maps.append(seen.of(words))
                if step == last:
                    looking.close()
                    masks = subject_masks(torch.stack(maps).mean(0), self._height, self._width)
                    self.masks += masks.cpu().unbind()
                    regional = Regional(masks, self._contexts[:, rows], guided=self._guided)
                    drawing.enter_context(regional_sampling(unet, regional, self._placed))
                    drawing.enter_context(recorded(unet))
                return {}

            yield after_step
