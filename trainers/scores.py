"""How like its subject and its prompt a drawn picture looks to the base itself: no other network judges.

Some pictures have in common what others lack. The patches of the former, by their features inside the UNet (DIFT,
arXiv 2306.03881), are each compared with the patch of the drawn picture that is most like it. 100: as like as these
pictures are to each other; 0: as like as the others. All is done with no adapter attached.

- Subject: the training pictures, and what the base draws from the same prompts without the adapter.
- Prompt: what the base draws from the prompt, without the adapter, and from the bare class word. A learnt subject is no
  mistake then, as it is to the diffusion classifier (arXiv 2303.16203), which takes it for one of the class word.

docs/ui.md has what was measured (benchmarks/scores.py).
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

BLOCKS, FEATURE_TIMESTEP = (0, 1), 261
"""Up blocks and timestep whose features are compared: DIFT's timestep. Of SDXL's blocks implementations of ConsiStory
(arXiv 2402.03286) take the first, 1/16 of a picture's side: it knows things. The second is finer, and knows colours."""
MOST_SIDE = 64
"""Patches along a side; SDXL's second block has twice as many, which are averaged."""
NEARLY = 0.75
"""The finer block knows less of what thing it looks at, so that a learnt subject misleads it less. For colours it was
at least 0.83 times as good as the other, for things at most 0.62 times (four subjects of the embedded base)."""
FEATURE_NOISES = 4
"""Noises over which features are averaged; DIFT takes 8."""


Looks = list[Tensor]
"""A picture's features, [patches, d] for each of BLOCKS."""


@dataclass(frozen=True)
class Trait:
    """What some pictures have in common and others lack, by the features of one block, and the ends of the scale."""

    patches: Float[Tensor, "r d"]
    """Of all pictures that have it, of length 1 around `centre`."""
    centre: Float[Tensor, " d"]
    weights: Float[Tensor, " r"]
    """How much more like the other pictures that have it than like those without a patch is; they add up to 1."""
    zero: float
    hundred: float
    block: int = 0
    """The number of the features among those of a picture."""

    @classmethod
    def of(cls, having: Sequence[Looks], without: Sequence[Looks], block: int = 0) -> Trait | None:
        """From two pictures or more that have it, and some without.

        None where no patch is more like the other pictures that have it than like those without: there is nothing to
        measure.
        """
        own, plain = ([looks[block] for looks in found] for found in (having, without))
        centre = torch.cat([*own, *plain]).mean(0)
        ours, others = ([F.normalize(one - centre, dim=1) for one in found] for found in (own, plain))
        mutual = torch.cat([_mean_likeness(one, [*ours[:i], *ours[i + 1 :]]) for i, one in enumerate(ours)])
        patches = torch.cat(ours)
        foreign = _mean_likeness(patches, others)
        weights = (mutual - foreign).clamp_min(0)
        if not (total := weights.sum()) > 0:
            return None
        weights = weights / total
        return cls(patches, centre, weights, float(weights @ foreign), float(weights @ mutual), block)

    @classmethod
    def clearest(cls, having: Sequence[Looks], without: Sequence[Looks]) -> Trait | None:
        """By the block that tells these pictures apart best; by the finer one where it is nearly as good."""
        coarse, fine = (cls.of(having, without, block) for block in range(len(BLOCKS)))
        if coarse is None or fine is None:
            return coarse or fine
        return fine if fine.hundred - fine.zero >= NEARLY * (coarse.hundred - coarse.zero) else coarse

    def score(self, picture: Looks) -> float:
        """Of a drawn picture; 0 and 100 are no bounds."""
        looks = F.normalize(picture[self.block] - self.centre, dim=1)
        found = float(self.weights @ _mean_likeness(self.patches, [looks]))
        return 100 * (found - self.zero) / (self.hundred - self.zero)


def _mean_likeness(patches: Float[Tensor, "r d"], pictures: Sequence[Float[Tensor, "m d"]]) -> Float[Tensor, " r"]:
    """Each patch's cosine with the patch of a picture that is most like it, the mean over the pictures."""
    return torch.stack([(patches @ picture.mT).amax(1) for picture in pictures]).mean(0)


def latents_of(base: Base, picture: Image.Image) -> Float[Tensor, "1 c h w"]:
    """Of the middle square, at the base's native side."""
    side = base.native_resolution
    return base.encode_pictures(to_pixels(ImageOps.fit(picture.convert("RGB"), (side, side)))[None])[0]


@torch.no_grad()
def features(base: Base, latents: Float[Tensor, "1 c h w"]) -> Looks:
    """What each of BLOCKS knows of each patch, told no prompt, of noises that are the same for every picture; fp32."""
    caught = list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        known = output.float().mean(0)
        height, width = (min(length, MOST_SIDE) for length in known.shape[1:])
        caught.append(F.adaptive_avg_pool2d(known, (height, width)).flatten(1).mT)

    blocks = cast(Any, base.unet).up_blocks
    handles = [blocks[number].register_forward_hook(keep) for number in BLOCKS]
    try:
        _look(base, latents)
    finally:
        for handle in handles:
            handle.remove()
    return caught


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
