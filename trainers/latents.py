"""Latents of crops: pictures are opened and cut ahead of the encoder, and what it gives is written behind it.

A picture takes the processor about as long as the VAE takes a GPU; one after the other they would wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from trainers.buckets import Crop, apply_crop
from trainers.cache import TensorCache, latents_key
from trainers.dataset import EncodedItem, Item
from trainers.images import Picture, open_mask, open_rgb

EncodeLatents = Callable[[Float[Tensor, "b 3 H W"]], tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]]
_HANDS = 4
_AHEAD = 2
"""Items whose pictures may be in memory: the one that is encoded, and the next."""
Found = dict[str, Tensor]
"""Mean and deviation of one crop, "c h w", fp32, on the CPU."""


def encode_items(
    items: Sequence[Item],
    encode_latents: EncodeLatents,
    cache: TensorCache,
    vae_id: str,
    mask_floor: float | None = None,
) -> Iterator[EncodedItem]:
    """Every item's tensors in their order, from the cache or encoded.

    `encode_latents` gets pixels in [-1, 1], "1 3 H W" on the CPU, and gives the latents' mean and deviation; one crop
    at a time, so that latents are the same bit for bit whatever the cache held. `vae_id` names the VAE's weights,
    precision and scaling. `mask_floor`: loss weight outside the masks (None: no masks).
    """
    waiting, prepared = deque(items), deque[list[Future[Found | Tensor]]]()
    known: dict[str, Found] = {}
    with ThreadPoolExecutor(_HANDS) as hands, ThreadPoolExecutor(1) as scribe:
        for item in items:
            while waiting and len(prepared) < _AHEAD:
                prepared.append(_prepare(waiting.popleft(), cache, vae_id, hands))
            crops: list[Found] = []
            for crop, future in zip(item.crops, prepared.popleft(), strict=True):
                key = latents_key(item.picture.sha256, crop, vae_id)
                ready = future.result()
                if key not in known and isinstance(ready, Tensor):
                    mean, std = encode_latents(ready)
                    known[key] = {"mean": mean[0].detach().float().cpu(), "std": std[0].detach().float().cpu()}
                    scribe.submit(cache.put, key, known[key])
                crops.append(known[key] if isinstance(ready, Tensor) else ready)
            yield _encoded(item, crops, mask_floor)


def _prepare(item: Item, cache: TensorCache, vae_id: str, hands: ThreadPoolExecutor) -> list[Future[Found | Tensor]]:
    """For each crop its latents where they are cached, else its pixels, "1 3 H W"."""
    opened = _Opened(item.picture)

    def ready(crop: Crop) -> Found | Tensor:
        found = cache.get(latents_key(item.picture.sha256, crop, vae_id))
        return to_pixels(apply_crop(opened.image(), crop))[None] if found is None else found

    return [hands.submit(ready, crop) for crop in item.crops]


@dataclass
class _Opened:
    """A picture that is decoded once, by whichever thread wants it first."""

    picture: Picture

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._image: Image.Image | None = None

    def image(self) -> Image.Image:
        with self._lock:
            if self._image is None:
                self._image = open_rgb(self.picture)
            return self._image


def _encoded(item: Item, crops: list[Found], mask_floor: float | None) -> EncodedItem:
    mean, std = (torch.stack([crop[name] for crop in crops]) for name in ("mean", "std"))
    mask = None if mask_floor is None else _mask_weights(item, mask_floor, (mean.shape[-2], mean.shape[-1]))
    return EncodedItem(item, mean, std, mask)


def to_pixels(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """An RGB picture as the VAE wants it: fp32 in [-1, 1]."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


def _mask_weights(item: Item, floor: float, size: tuple[int, int]) -> Float[Tensor, "v 1 h w"]:
    """Loss weights of an item's crops at latent size, mean 1; all 1 without a mask and for the class."""
    mask = None if item.is_prior else open_mask(item.picture)
    if mask is None:
        return torch.ones(len(item.crops), 1, *size)
    cut = [torch.from_numpy(np.array(apply_crop(mask, crop), np.float32) / 255) for crop in item.crops]
    weights = floor + (1 - floor) * F.adaptive_avg_pool2d(torch.stack(cut)[:, None], size)
    mean = weights.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(mean > 0, weights / mean.clamp(min=1e-8), torch.ones_like(weights))
