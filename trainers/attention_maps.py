"""Where in a picture its words are: cross-attention while it is drawn, and masks of subjects from it.

As FreeFuse finds them (arXiv 2510.23515): from early denoising steps, by argmax between the subjects. What differs, and
what was measured: docs/fusion.md.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainers.regions import grid_of

_FINEST = 8
"""Tokens a side from which on an up block tells places apart."""
_DEPTH = 3
"""The transformer block that is looked at in each of its attentions: FreeFuse's choice for SDXL."""
_BLUR = 0.1
"""The blur's deviation as a part of the picture's shorter side."""
_ROUNDING = 32
"""Units in the last place by which a flat map may vary once it is blurred."""


@dataclass
class AttentionMaps:
    """What a few cross-attentions computed last."""

    size: tuple[int, int]
    """Height and width of the latents."""
    queries: dict[nn.Module, Tensor] = field(default_factory=dict[nn.Module, Tensor])
    keys: dict[nn.Module, Tensor] = field(default_factory=dict[nn.Module, Tensor])

    def of(self, words: Float[Tensor, "p n l"]) -> Float[Tensor, "p n h w"]:
        """How much each token of the last p pictures of the batch looks at each subject's words, standardised.

        Args:
            words: weights of the prompts' tokens that speak of a subject, adding up to 1.
        """
        found = [_attention(attn, q, self.keys[attn], words) for attn, q in self.queries.items()]
        height, width = grid_of(found[0].shape[2], *self.size)
        return torch.stack([standardised(one.unflatten(2, (height, width))) for one in found]).mean(0)


def _attention(attn: Any, q: Tensor, k: Tensor, words: Float[Tensor, "p n l"]) -> Float[Tensor, "p n t"]:
    """The mean over heads of softmax(q kᵀ/√d), summed over a subject's words."""
    q, k = (part[-len(words) :].unflatten(-1, (attn.heads, -1)).transpose(1, 2).float() for part in (q, k))
    shares = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(1)
    return words @ shares.mT


@contextmanager
def watching(unet: nn.Module, height: int, width: int) -> Generator[AttentionMaps]:
    """Within, the last pass's attention maps are at hand; `height` and `width` are the latents'."""
    maps = AttentionMaps((height, width))

    def keep(kept: dict[nn.Module, Tensor], attn: nn.Module, layer: nn.Module, _: Any, output: Tensor) -> None:
        kept[attn] = output

    handles = [
        layer.register_forward_hook(partial(keep, kept, attn))
        for attn in _looked_at(unet, height, width)
        for layer, kept in ((attn.to_q, maps.queries), (attn.to_k, maps.keys))
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _looked_at(unet: nn.Module, height: int, width: int) -> list[Any]:
    """One cross-attention of each transformer in the first up block that is fine enough, else in the last there is."""
    ups = list(cast(Any, unet).up_blocks)
    sides = [min(height, width) >> (len(ups) - 1 - number) for number in range(len(ups))]
    able = [(block, side) for block, side in zip(ups, sides, strict=True) if hasattr(block, "attentions")]
    block = next((block for block, side in able if side >= _FINEST), able[-1][0])
    chosen = [list(transformer.transformer_blocks) for transformer in block.attentions]
    return [blocks[min(_DEPTH, len(blocks) - 1)].attn2 for blocks in chosen]


def standardised(maps: Float[Tensor, "p n h w"]) -> Float[Tensor, "p n h w"]:
    """Each map with mean 0 and deviation 1: no subject's words are louder than another's. A flat one is 0."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    deviation = centred.square().mean((2, 3), keepdim=True).sqrt()
    rounding = _ROUNDING * torch.finfo(maps.dtype).eps * maps.abs().amax((2, 3), keepdim=True)
    return torch.where(deviation > rounding, centred / deviation, 0.0)


def blurred(maps: Float[Tensor, "p n h w"], deviation: float) -> Float[Tensor, "p n h w"]:
    """By a Gaussian of that deviation in pixels; the border's values go on beyond it."""
    reach = math.ceil(3 * deviation)
    steps = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-steps.square() / (2 * deviation**2))
    weights = (weights / weights.sum())[None, None]
    padded = F.pad(maps.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[..., None, :]), weights[..., None]).view_as(maps)


def subject_masks(maps: Float[Tensor, "p n h w"], height: int, width: int) -> Float[Tensor, "p n H W"]:
    """Each subject's pixels, 0 or 1: where its map is the highest and above its own mean; the rest is background."""
    larger = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    level = standardised(blurred(larger, _BLUR * min(height, width)))
    winner = F.one_hot(level.argmax(1), level.shape[1]).movedim(-1, 1)
    return winner * (level > 0).to(maps.dtype)
