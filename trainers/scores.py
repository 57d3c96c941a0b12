"""How like its subject a drawn picture looks to the base itself: no other network judges.

The training pictures' patches, by their features inside the UNet (DIFT, arXiv 2306.03881), are each compared with the
patch of the drawn picture that is most like it. 100: as like as the training pictures are to each other; 0: as like as
what the base draws from the same prompts without the adapter. All is done with no adapter attached.

How well a picture fits its prompt is not told: the diffusion classifier (arXiv 2303.16203) takes a learnt subject for a
mistake of the prompt's class word. docs/ui.md has what was measured (benchmarks/scores.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn

from trainers.latents import to_pixels
from trainers.objective import ObjectiveConfig, training_scheduler
from trainers.sdxl import Base

FEATURE_BLOCK, FEATURE_TIMESTEP = 0, 261
"""The up block and timestep whose features are compared: DIFT's timestep, and of SDXL's blocks the one (1/16 of a
picture's side) that implementations of ConsiStory (arXiv 2402.03286) take with it."""
FEATURE_NOISES = 4
"""Noises over which features are averaged; DIFT takes 8."""


@dataclass(frozen=True)
class Subject:
    """What its training pictures have in common and the base's own pictures lack, and the ends of the scale."""

    patches: Float[Tensor, "r d"]
    """Of all training pictures, of length 1 around `centre`."""
    centre: Float[Tensor, " d"]
    weights: Float[Tensor, " r"]
    """How much more like the other training pictures than like the base's own a patch is; they add up to 1."""
    zero: float
    hundred: float

    @classmethod
    def of(cls, training: Sequence[Float[Tensor, "n d"]], plain: Sequence[Float[Tensor, "m d"]]) -> Subject | None:
        """From features of two training pictures or more, and of what the base draws without the adapter.

        None where no patch is more like the other training pictures than like the base's: there is nothing to measure.
        """
        centre = torch.cat([*training, *plain]).mean(0)
        ours, others = ([F.normalize(one - centre, dim=1) for one in found] for found in (training, plain))
        mutual = torch.cat([_mean_likeness(one, [*ours[:i], *ours[i + 1 :]]) for i, one in enumerate(ours)])
        patches = torch.cat(ours)
        foreign = _mean_likeness(patches, others)
        weights = (mutual - foreign).clamp_min(0)
        if not (total := weights.sum()) > 0:
            return None
        weights = weights / total
        return cls(patches, centre, weights, float(weights @ foreign), float(weights @ mutual))

    def score(self, picture: Float[Tensor, "m d"]) -> float:
        """Of a drawn picture's features; 0 and 100 are no bounds."""
        found = float(self.weights @ _mean_likeness(self.patches, [F.normalize(picture - self.centre, dim=1)]))
        return 100 * (found - self.zero) / (self.hundred - self.zero)


def _mean_likeness(patches: Float[Tensor, "r d"], pictures: Sequence[Float[Tensor, "m d"]]) -> Float[Tensor, " r"]:
    """Each patch's cosine with the patch of a picture that is most like it, the mean over the pictures."""
    return torch.stack([(patches @ picture.mT).amax(1) for picture in pictures]).mean(0)


def latents_of(base: Base, picture: Image.Image) -> Float[Tensor, "1 c h w"]:
    """Of the middle square, at the base's native side."""
    side = base.native_resolution
    return base.encode_pictures(to_pixels(ImageOps.fit(picture.convert("RGB"), (side, side)))[None])[0]


@torch.no_grad()
def features(base: Base, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "n d"]:
    """What the UNet knows of each patch, told no prompt, of noises that are the same for every picture; fp32."""
    caught = list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        caught.append(output.float().mean(0).flatten(1).mT)

    handle = cast(Any, base.unet).up_blocks[FEATURE_BLOCK].register_forward_hook(keep)
    try:
        _look(base, latents)
    finally:
        handle.remove()
    return caught[0]


def _look(base: Base, latents: Float[Tensor, "1 c h w"]) -> None:
    """Has the UNet see the latents under FEATURE_NOISES noises at once."""
    shape, side = (FEATURE_NOISES, *latents.shape[1:]), base.native_resolution
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(base.device)
    times = torch.full((FEATURE_NOISES,), FEATURE_TIMESTEP, device=base.device)
    scheduler = training_scheduler(base.pipe.scheduler, ObjectiveConfig())
    noisy = scheduler.add_noise(latents.to(base.device).expand(shape), noise, times)  # pyright: ignore
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=base.device)
    told = base.encode_nothing()
    conditions = {
        "text_embeds": told.pooled.to(base.dtype).expand(FEATURE_NOISES, -1),
        "time_ids": sizes.expand(FEATURE_NOISES, -1),
    }
    context = told.context.to(base.dtype).expand(FEATURE_NOISES, -1, -1)
    base.unet(noisy.to(base.dtype), times, context, added_cond_kwargs=conditions, return_dict=False)
