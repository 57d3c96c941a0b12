"""How a drawn picture looks to the base alone: how like its subject it is, and how well its prompt explains it.

No other network judges. Both numbers are 100 for what is as good as it gets and 0 for nothing of it:

- subject: the training pictures' patches, by their features inside the UNet (DIFT, arXiv 2306.03881), each compared
  with the patch of the drawn picture that is most like it. 100: as like as the training pictures are to each other; 0:
  as like as what the base draws from the same prompts without the adapter.
- prompt: by how much smaller the error of predicting the picture's noise is when the base is told the prompt (the
  diffusion classifier, arXiv 2303.16203), from the same noises. 100: as much as for the base's own picture of that
  prompt; 0: the prompt tells nothing of the picture.

docs/ui.md has what was measured of them. All is done with no adapter attached.
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
from trainers.objective import ObjectiveConfig, prediction_target, training_scheduler
from trainers.sdxl import Base
from trainers.text import TextStates

FEATURE_BLOCK, FEATURE_TIMESTEP = 0, 261
"""The up block and timestep whose features are compared: DIFT's for SD 2.1, as ConsiStory (arXiv 2402.03286) has them
for SDXL."""
FEATURE_NOISES = 4
"""Noises over which features are averaged; DIFT takes 8."""
PROMPT_LEVELS = (0.35, 0.55, 0.75)
"""Timesteps, as parts of the schedule, at which noise is predicted: one noise each, the same for all pictures."""
TELLING = 0.01
"""A prompt that makes the base's error on its own picture smaller by less than this part tells it nothing."""


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


def prompt_score(gain: float, own: float) -> float | None:
    """Of a picture's gain and of the base's own picture's; None where the prompt tells the base nothing."""
    return 100 * gain / own if own >= TELLING else None


def latents_of(base: Base, picture: Image.Image) -> Float[Tensor, "1 c h w"]:
    """Of the middle square, at the base's native side."""
    side = base.native_resolution
    return base.encode_pictures(to_pixels(ImageOps.fit(picture.convert("RGB"), (side, side)))[None])[0]


@torch.no_grad()
def features(base: Base, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "n d"]:
    """What the UNet knows of each patch, told no prompt; fp32."""
    times = torch.full((FEATURE_NOISES,), FEATURE_TIMESTEP, device=base.device)
    nothing, caught = base.encode_nothing(), list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        caught.append(output.float().mean(0).flatten(1).mT)

    handle = cast(Any, base.unet).up_blocks[FEATURE_BLOCK].register_forward_hook(keep)
    try:
        _errors(base, latents, times, nothing)
    finally:
        handle.remove()
    return caught[0]


@torch.no_grad()
def prompt_gain(base: Base, latents: Float[Tensor, "1 c h w"], told: TextStates) -> float:
    """By which part the base's error is smaller for being told this (a batch of 1): the mean over PROMPT_LEVELS."""
    count = base.pipe.scheduler.config["num_train_timesteps"]
    times = torch.tensor([int(level * count) for level in PROMPT_LEVELS], device=base.device)
    without, with_prompt = (_errors(base, latents, times, states) for states in (base.encode_nothing(), told))
    return float((1 - with_prompt / without).mean())


def _errors(base: Base, latents: Float[Tensor, "1 c h w"], times: Tensor, told: TextStates) -> Float[Tensor, " b"]:
    """Mean squared errors of the base's prediction, one a timestep; the k-th noise is the same whatever is asked."""
    shape = (len(times), *latents.shape[1:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(base.device)
    clean, side = latents.to(base.device).expand(shape), base.native_resolution
    scheduler = training_scheduler(base.pipe.scheduler, ObjectiveConfig())
    noisy = scheduler.add_noise(clean, noise, times).to(base.dtype)  # pyright: ignore
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=base.device)
    conditions = {
        "text_embeds": told.pooled.to(base.dtype).expand(len(times), -1),
        "time_ids": sizes.expand(len(times), -1),
    }
    context = told.context.to(base.dtype).expand(len(times), -1, -1)
    predicted = base.unet(noisy, times, context, added_cond_kwargs=conditions, return_dict=False)[0]
    target = prediction_target(scheduler, clean, noise, times)
    return (predicted.float() - target).square().mean((1, 2, 3))
