"""Several subjects in one picture, each where it was asked for: prompts and adapters that act in a region only.

Cross-attention looks at every region's own prompt and each token takes what its region saw; an adapter's change is
added at the tokens and pixels of its region, and to the keys and values of its own prompt. The UNet runs once for all.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.sites import Site
from trainers.places import Region

SHARED = 0.2
"""How much the whole picture's prompt says within a region."""
Placed = Sequence[tuple[AdapterSet, int]]
"""Adapter sets and the number of the region that each acts in."""
_CONTEXT_LAYER = re.compile(r"\.attn2\.to_[kv]$")


def region_masks(regions: Sequence[Region], height: int, width: int) -> Float[Tensor, "n h w"]:
    """How much of each latent pixel a region has; where regions overlap they share it."""
    rows, columns = torch.arange(height + 1) / height, torch.arange(width + 1) / width
    masks = torch.stack(
        [
            _covered(rows, top, bottom)[:, None] * _covered(columns, left, right)[None]
            for left, top, right, bottom in (region.box for region in regions)
        ]
    )
    return masks / masks.sum(0).clamp_min(1)


def _covered(edges: Float[Tensor, " n1"], start: float, end: float) -> Float[Tensor, " n"]:
    """The part of each cell between two neighbouring edges that lies within start…end."""
    inside = torch.minimum(edges[1:], torch.tensor(end)) - torch.maximum(edges[:-1], torch.tensor(start))
    return (inside / (edges[1:] - edges[:-1])).clamp(0, 1)


@dataclass
class Regional:
    """Where what is drawn: one layout for all pictures of a batch (p = 1), or one for each of them.

    Args:
        masks: at the latents' size.
        contexts: each region's prompt as the UNet reads it.
        guided: whether the first half of a batch is without prompt (classifier-free guidance).
        shared: how much the whole picture's prompt says within regions.
    """

    masks: Float[Tensor, "p n h w"]
    contexts: Float[Tensor, "n p l d"]
    guided: bool
    shared: float = SHARED
    now: int | None = None
    """Whose prompt keys and values are being computed of; None: the whole picture's."""
    _sizes: dict[tuple[int, int], Tensor] = field(default_factory=dict[tuple[int, int], Tensor])

    def at(self, height: int, width: int) -> Float[Tensor, "p n h w"]:
        """The masks at another size."""
        if (height, width) not in self._sizes:
            self._sizes[height, width] = F.adaptive_avg_pool2d(self.masks, (height, width))
        return self._sizes[height, width]

    def tokens(self, count: int) -> Float[Tensor, "p n t"]:
        """The masks of a picture's tokens, however many there are of them."""
        return self.at(*grid_of(count, *self.masks.shape[2:])).flatten(2)

    def within(self, delta: Tensor, masks: Float[Tensor, "p ..."]) -> Tensor:
        """What is left of a change to a batch, whose pictures may be there twice, without and with prompt."""
        if len(masks) > 1:
            masks = masks.repeat(len(delta) // len(masks), *(1 for _ in masks.shape[1:]))
        return delta * masks.to(delta.dtype)


def grid_of(count: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of `count` tokens of a picture of latents of this size."""
    smaller = round((height * width / count) ** 0.5)
    return height // smaller, width // smaller


@dataclass(frozen=True)
class Within:
    """An adapter set's place (adapters.layer.Switch): its change in one region."""

    regional: Regional
    region: int

    def __call__(self, site: Site, delta: Tensor) -> Tensor:
        regional, region = self.regional, self.region
        if not site.name.startswith("unet."):
            return delta
        if _CONTEXT_LAYER.search(site.name):
            return delta if regional.now == region else torch.zeros_like(delta)
        if delta.ndim == 4:
            return regional.within(delta, regional.at(*delta.shape[2:])[:, region, None])
        if delta.ndim == 3:
            return regional.within(delta, regional.tokens(delta.shape[1])[:, region, :, None])
        return regional.within(delta, regional.masks[:, region].mean((1, 2))[:, None])  # time: no place, so its share


class RegionalAttention:
    """A cross-attention in which each token takes what it sees of its region's prompt."""

    def __init__(self, regional: Regional) -> None:
        self.regional = regional

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        regional, context = self.regional, encoder_hidden_states
        assert context is not None
        q = attn.to_q(hidden_states)
        mixed = _attend(attn, q, context)
        start = len(q) // 2 if regional.guided else 0
        masks = (1 - regional.shared) * regional.tokens(q.shape[1]).to(q.dtype)[..., None]
        told = mixed[start:] * (1 - masks.sum(1))
        for number, own in enumerate(regional.contexts.to(q.dtype)):
            regional.now = number
            told = told + masks[:, number] * _attend(attn, q[start:], own.expand(len(q) - start, -1, -1))
        regional.now = None
        return attn.to_out[1](attn.to_out[0](torch.cat([mixed[:start], told])))


def _attend(attn: Any, q: Tensor, context: Tensor) -> Tensor:
    k, v = attn.to_k(context), attn.to_v(context)
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@contextmanager
def regional_sampling(unet: nn.Module, regional: Regional, placed: Placed) -> Generator[None]:
    """Within, the UNet draws by regions, and so does FastUnet on it; adapters that are not placed act everywhere."""
    replaced: list[tuple[Any, Any]] = []
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn2"):
            replaced.append((module, module.processor))
            module.set_processor(RegionalAttention(regional))  # pyright: ignore[reportArgumentType]
    for adapters, region in placed:
        adapters.place(Within(regional, region))
    try:
        yield
    finally:
        for module, processor in replaced:
            module.set_processor(processor)
        for adapters, _ in placed:
            adapters.place(None)


@contextmanager
def alone(placed: Placed, region: int) -> Generator[None]:
    """Within, of the adapters that are placed only this region's act: they alone read its prompt."""
    with muted([adapters for adapters, number in placed if number != region]):
        yield


@contextmanager
def muted(sets: Sequence[AdapterSet]) -> Generator[None]:
    """Within, these adapters do nothing."""
    before = [adapters.strength for adapters in sets]
    for adapters in sets:
        adapters.strength = 0.0
    try:
        yield
    finally:
        for adapters, strength in zip(sets, before, strict=True):
            adapters.strength = strength
