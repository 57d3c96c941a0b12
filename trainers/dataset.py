"""Pictures and captions → what the steps pick from: latents, masks, sizes and captions, on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trainers.buckets import Bucket, Crop, make_buckets, nearest_bucket, plan_crops
from trainers.captions import CaptionConfig, caption_of, caption_variants, caption_warnings
from trainers.images import ImageChecks, Picture, list_names


class DataConfig(BaseModel):
    """Which pictures are shown, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path = Field(description="folder of the subject's pictures")
    captions: CaptionConfig = Field(description="captions and the trigger word")
    resolution: int | None = Field(
        default=None, ge=1, description="side of the training square; left out: the base's own"
    )
    bucketing: bool = Field(default=True, description="keep each picture's aspect ratio; off: all are cut square")
    max_aspect: float = Field(default=2.0, ge=1, description="longest bucket: longer side over shorter side")
    crop_variants: int = Field(
        default=4, ge=1, description="crops a picture; the first is centred, others are jittered"
    )
    flip: bool = Field(
        default=False, description="show mirrored crops, too (not for faces, writing or asymmetric subjects)"
    )
    repeats: int = Field(
        default=1, ge=1, description="times a picture is shown in an epoch, each time with crops of its own"
    )
    masked_loss: bool = Field(default=False, description="learn what the masks (or the alpha channel) mark")
    mask_floor: float = Field(default=0.1, ge=0, le=1, description="loss weight outside the mask; inside it is 1")
    checks: ImageChecks = Field(default=ImageChecks(), description="what a picture must be")

    def buckets(self, native_resolution: int, step: int) -> list[Bucket]:
        """The picture sizes of a run: sides are multiples of `step`; only the square without bucketing."""
        max_aspect = self.max_aspect if self.bucketing else 1.0
        return make_buckets(self.resolution or native_resolution, step, max_aspect)


@dataclass(frozen=True)
class Item:
    """A picture as it will be shown: any of its crops (all of one bucket) with any of its captions."""

    picture: Picture
    crops: tuple[Crop, ...]
    captions: tuple[str, ...]
    is_prior: bool

    @property
    def bucket(self) -> Bucket:
        return self.crops[0].bucket


@dataclass(frozen=True)
class BucketTensors:
    """All items of one bucket: n items, v crops each, k captions each, latents of c × h × w; on the device.

    Items with fewer crops or captions repeat theirs in turn. `mean` and `std` are the latents' distribution
    as `encode_latents` gives it, fp32. `mask` weights the loss at latent positions and has mean 1 over each
    crop, so that a small subject learns as fast as a large one. `captions` are rows of the text table.
    """

    mean: Float[Tensor, "n v c h w"]
    std: Float[Tensor, "n v c h w"]
    mask: Float[Tensor, "n v 1 h w"] | None
    time_ids: Float[Tensor, "n v 6"]
    captions: Int[Tensor, "n k"]
    is_prior: Bool[Tensor, " n"]
    is_repeat: Bool[Tensor, " n"] | None = None
    """Items of a picture that an earlier one shows already; None: there are none."""


def data_warnings(pictures: Sequence[Picture], config: DataConfig) -> list[str]:
    """Sentences on captions and masks that may not be as meant; `find_pictures` speaks of the pictures themselves."""
    masked = [picture for picture in pictures if picture.mask_path is not None or picture.has_alpha]
    warnings = caption_warnings(pictures, config.captions)
    if config.masked_loss and len(masked) < len(pictures):
        without = [picture.path.name for picture in pictures if picture not in masked]
        warnings.append(f"Without a mask, so all of it is learnt: {list_names(without)}.")
    if masked and not config.masked_loss:
        warnings.append("There are masks, but they are not used (data.masked_loss=true uses them).")
    return warnings


def plan_items(pictures: Sequence[Picture], config: DataConfig, buckets: list[Bucket], seed: int = 0) -> list[Item]:
    """The subject's items in the pictures' order, each picture `config.repeats` times.

    Crops and caption variants follow from the picture's content and `seed` alone.
    """
    items: list[Item] = []
    for picture in pictures:
        picture = picture if config.masked_loss else replace(picture, mask_path=None)
        caption = caption_of(picture, config.captions)
        captions = tuple(caption_variants(caption, config.captions, f"{seed}/{picture.sha256}"))
        bucket = nearest_bucket(picture.width, picture.height, buckets)
        for repeat in range(config.repeats):
            crops = _crops(picture, bucket, config.crop_variants, config.flip, f"{seed}/{picture.sha256}/{repeat}")
            items.append(Item(picture, crops, captions, is_prior=False))
    return items


def plan_prior_items(
    pictures: Sequence[Picture],
    caption: str,
    buckets_in_use: Iterable[Bucket],
    *,
    variants: int = 1,
    flip: bool = False,
    seed: int = 0,
) -> list[Item]:
    """Class pictures cropped into every bucket in use, so that a batch of any shape finds its class pictures."""
    return [
        Item(
            picture,
            _crops(picture, bucket, variants, flip, f"{seed}/{picture.sha256}"),
            (caption,),
            is_prior=True,
        )
        for bucket in buckets_in_use
        for picture in pictures
    ]


def buckets_in_use(items: Iterable[Item]) -> list[Bucket]:
    """The buckets that items fall into, in order of size."""
    return sorted({item.bucket for item in items})


def _crops(picture: Picture, bucket: Bucket, variants: int, flip: bool, seed_text: str) -> tuple[Crop, ...]:
    return tuple(plan_crops(picture.width, picture.height, bucket, variants, flip, seed_text))


def text_table(items: Iterable[Item]) -> list[str]:
    """Every caption once, sorted."""
    texts = {caption for item in items for caption in item.captions}
    return sorted(texts)


@dataclass(frozen=True)
class EncodedItem:
    """An item with the latents and loss weights of its v crops, on the CPU."""

    item: Item
    mean: Float[Tensor, "v c h w"]
    std: Float[Tensor, "v c h w"]
    mask: Float[Tensor, "v 1 h w"] | None


def stack_by_bucket(
    encoded: Iterable[EncodedItem], texts: Sequence[str], device: torch.device | str
) -> dict[Bucket, BucketTensors]:
    """Encoded items (with masks or all without) as one set of tensors a bucket, moved to `device`."""
    number = {text: index for index, text in enumerate(texts)}
    rows: dict[Bucket, list[EncodedItem]] = {}
    for row in encoded:
        rows.setdefault(row.item.bucket, []).append(row)
    return {bucket: _stack(of_bucket, number, device) for bucket, of_bucket in rows.items()}


def _stack(rows: list[EncodedItem], number: dict[str, int], device: torch.device | str) -> BucketTensors:
    variants = max(len(row.item.crops) for row in rows)
    texts = max(len(row.item.captions) for row in rows)
    masks = [row.mask for row in rows if row.mask is not None]
    time_ids = [torch.tensor([crop.time_ids for crop in row.item.crops], dtype=torch.float32) for row in rows]
    captions = [torch.tensor([number[caption] for caption in row.item.captions]) for row in rows]
    first: dict[Path, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.item.picture.path, index)
    return BucketTensors(
        mean=_even([row.mean for row in rows], variants).to(device),
        std=_even([row.std for row in rows], variants).to(device),
        mask=_even(masks, variants).to(device) if masks else None,
        time_ids=_even(time_ids, variants).to(device),
        captions=_even(captions, texts).to(device),
        is_prior=torch.tensor([row.item.is_prior for row in rows], device=device),
        is_repeat=torch.tensor([first[row.item.picture.path] != index for index, row in enumerate(rows)]),
    )


def _even(tensors: list[Tensor], length: int) -> Tensor:
    """Stacked tensors whose first dimension was brought to `length` by repeating it in turn."""
    return torch.stack([tensor[list(islice(cycle(range(len(tensor))), length))] for tensor in tensors])


def manifest(items: Iterable[Item]) -> dict[str, str]:
    """Picture name (of a class picture "class/…") → digests of its content, captions, crops and mask file."""
    grouped: dict[str, list[Item]] = {}
    for item in items:
        name = item.picture.path.name
        grouped.setdefault(f"class/{name}" if item.is_prior else name, []).append(item)
    return {name: " ".join(_digests(group)) for name, group in grouped.items()}


def own_pictures(manifest: Mapping[str, str]) -> list[str]:
    """sha256 of the pictures in a manifest, without those of the class."""
    return [digests.split()[0] for name, digests in manifest.items() if not name.startswith("class/")]


def _digests(items: list[Item]) -> tuple[str, str, str, str]:
    picture = items[0].picture
    captions = _digest(repr([item.captions for item in items]).encode())
    crops = _digest(repr([item.crops for item in items]).encode())
    mask = "none" if picture.mask_path is None else _digest(picture.mask_path.read_bytes())
    return picture.sha256, captions, crops, mask


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def describe_change(old: dict[str, str], new: dict[str, str]) -> str | None:
    """What differs between two manifests, in a sentence; None if nothing does."""
    both = sorted(old.keys() & new.keys())
    before, after = {name: old[name].split() for name in both}, {name: new[name].split() for name in both}
    found = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "other content": [name for name in both if before[name][0] != after[name][0]],
    }
    for index, what in ((1, "other captions"), (2, "other crops"), (3, "other masks")):
        found[what] = [n for n in both if before[n][0] == after[n][0] and before[n][index] != after[n][index]]
    parts = [f"{what}: {list_names(names)}" for what, names in found.items() if names]
    return "; ".join(parts) + "." if parts else None
