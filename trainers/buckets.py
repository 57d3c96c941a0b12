"""Aspect-ratio buckets and the crops that fit pictures into them. Sizes are pixels.

Buckets are those of SDXL (arXiv 2307.01952, sec. 2.3, appendix I) and of kohya's sd-scripts: for each width,
the tallest picture whose area is at most resolution². Crop coordinates are SDXL's conditioning (sec. 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageOps

from adapters.errors import UserInputError
from trainers.seeds import derive_seed

MAX_ZOOM = 1.1  # a jittered crop shows at least 1/1.1 of what the centre crop shows, along each side


@dataclass(frozen=True, order=True)
class Bucket:
    """One picture size; all pictures of a batch share it."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        return self.width / self.height


@dataclass(frozen=True)
class Crop:
    """How a picture becomes `bucket`: resize to `resized` (w, h), mirror if `flip`, cut at (`top`, `left`).

    `top` and `left` count in the resized (and mirrored) picture; `original` is the picture's own (h, w).
    """

    bucket: Bucket
    resized: tuple[int, int]
    top: int
    left: int
    flip: bool
    original: tuple[int, int]

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's (original height, original width, crop top, crop left, target height, target width)."""
        return (*self.original, self.top, self.left, self.bucket.height, self.bucket.width)


def make_buckets(resolution: int, step: int, max_aspect: float = 2.0) -> list[Bucket]:
    """All buckets, narrowest first: sides multiples of `step`, area ≤ `resolution`², aspect ≤ `max_aspect`.

    Each has the tallest height of its width, or the widest width of its height; the square is always there.
    """
    square = resolution // step * step
    if square == 0:
        raise UserInputError(
            f"A resolution of {resolution} is too small for this base.",
            f"Use a multiple of {step}, at least {step}.",
        )
    found = {Bucket(square, square)}
    for short in range(step, square + step, step):
        long = resolution**2 // short // step * step
        if long <= short * max_aspect:
            found |= {Bucket(short, long), Bucket(long, short)}
    for long in range(square + step, math.floor(resolution * math.sqrt(max_aspect)) + step, step):
        short = resolution**2 // long // step * step
        if 0 < long <= short * max_aspect:
            found |= {Bucket(short, long), Bucket(long, short)}
    return sorted(found, key=lambda bucket: (bucket.aspect, bucket.width))


def nearest_bucket(width: int, height: int, buckets: list[Bucket]) -> Bucket:
    """The bucket of the nearest aspect ratio on a log scale (least is cut away); of equals the larger one."""
    wanted = math.log(width / height)
    return min(buckets, key=lambda bucket: (abs(math.log(bucket.aspect) - wanted), -bucket.width * bucket.height))


def _uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` and on nothing else."""
    return (derive_seed(*parts) >> 10) / 2**53


def _crop(width: int, height: int, bucket: Bucket, zoom: float, position: tuple[float, float], flip: bool) -> Crop:
    """Cover the bucket, `zoom` times larger than needed; `position` (x, y) in [0, 1] shifts the cut."""
    scale = max(bucket.width / width, bucket.height / height) * zoom
    resized = max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))
    left = round((resized[0] - bucket.width) * position[0])
    top = round((resized[1] - bucket.height) * position[1])
    return Crop(bucket, resized, top, left, flip, original=(height, width))


def plan_crops(width: int, height: int, bucket: Bucket, variants: int, flip: bool, seed_text: str) -> list[Crop]:
    """`variants` crops of a picture: the centre crop, then crops at drawn places with a zoom up to MAX_ZOOM.

    With `flip`, as many mirrored ones follow, at places of their own. All derive from `seed_text`.
    """
    crops: list[Crop] = []
    for mirrored in (False, True) if flip else (False,):
        crops.append(_crop(width, height, bucket, 1.0, (0.5, 0.5), mirrored))
        for index in range(1, variants):
            zoom, x, y = (_uniform(seed_text, mirrored, index, axis) for axis in ("zoom", "x", "y"))
            crops.append(_crop(width, height, bucket, 1 + (MAX_ZOOM - 1) * zoom, (x, y), mirrored))
    return crops


def apply_crop(image: Image.Image, crop: Crop) -> Image.Image:
    """The picture (or its mask) as the crop shows it, of the bucket's size; Lanczos."""
    resized = image.resize(crop.resized, Image.Resampling.LANCZOS)
    if crop.flip:
        resized = ImageOps.mirror(resized)
    return resized.crop((crop.left, crop.top, crop.left + crop.bucket.width, crop.top + crop.bucket.height))
