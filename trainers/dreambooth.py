"""DreamBooth (arXiv 2208.12242): from a folder of pictures to everything the steps read, resident on the device."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from PIL import Image
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.errors import UserInputError
from trainers import dataset, images
from trainers.buckets import Bucket
from trainers.cache import TensorCache, encode_texts
from trainers.captions import CaptionConfig, fill
from trainers.config import TrainConfig
from trainers.dataset import BucketTensors, EncodedItem, Item
from trainers.events import Event, Note, Progress
from trainers.latents import encode_items
from trainers.sdxl import Base, generate
from trainers.seeds import derive_seed
from trainers.text import FrozenText, LiveText, TextSource, TextStates, split_tokens, token_count

CLASS_PICTURES = "class-pictures"
"""The folder in the cache that holds a folder of class pictures for each base, prompt and set of sizes."""


@dataclass(frozen=True)
class TrainingData:
    """Latents by bucket, captions as states or tokens, and the manifest that a resume compares."""

    buckets: dict[Bucket, BucketTensors]
    text: TextSource
    manifest: dict[str, str]
    pictures: int


def prepare(base: Base, config: TrainConfig, cache: TensorCache) -> Generator[Event, None, TrainingData]:
    """Check the pictures, make class pictures, encode all; yields events and returns what the steps read."""
    resolution = config.data.resolution or base.native_resolution
    pictures, warnings = images.find_pictures(config.data.folder, config.data.checks, resolution)
    warnings += dataset.data_warnings(pictures, config.data)
    yield from (Note(level="warning", text=text) for text in warnings)
    yield from trigger_notes(base, config.data.captions)
    buckets = config.data.buckets(base.native_resolution, base.size_step)
    items = dataset.plan_items(pictures, config.data, buckets, config.seed)
    if config.prior.weight > 0:
        prompt, in_use = class_prompt(config), dataset.buckets_in_use(items)
        folder = yield from class_pictures(base, config, prompt, in_use, cache.root.parent)
        found = images.find_pictures(folder, config.data.checks)[0]
        if config.prior.folder is None:  # an earlier run may have wanted more
            found = found[: config.prior.pictures]
        items += dataset.plan_prior_items(found, prompt, in_use, flip=config.data.flip, seed=config.seed)
    table = dataset.text_table(items)
    yield from long_caption_notes(base, table)
    tensors = yield from _encode_items(base, items, table, config, cache)
    text = _text_source(base, config, table, cache)
    return TrainingData(tensors, text, dataset.manifest(items), len(pictures))


def trigger_notes(base: Base, captions: CaptionConfig) -> Iterator[Note]:
    """A warning where the trigger is many tokens: it is learnt less sharply."""
    pieces = split_tokens(base.pipe.tokenizer, captions.trigger)
    if len(pieces) > 3:
        yield Note(
            level="warning",
            text=f'The trigger "{captions.trigger}" is {len(pieces)} tokens for this base ({" · ".join(pieces)}); '
            "a short made-up word such as sks, zwx or ohwx is learnt more sharply.",
        )


def long_caption_notes(base: Base, captions: list[str]) -> Iterator[Note]:
    """A warning where captions are longer than the text encoders read."""
    room = base.pipe.tokenizer.model_max_length - 2
    long = [caption for caption in captions if token_count(base.pipe.tokenizer, caption) > room]
    if long:
        yield Note(
            level="warning",
            text=f"{len(long)} captions are longer than the {room} tokens that this base reads; the rest is cut off, "
            f'first: "{long[0][:60]}…".',
        )


def class_prompt(config: TrainConfig) -> str:
    """The prompt of class pictures, or the captions' template, with the class filled in and without the trigger."""
    captions = config.data.captions
    if not captions.class_word:
        raise UserInputError(
            "Prior preservation needs to know what the subject is.", "Give --class, or set prior.weight=0."
        )
    words = fill(config.prior.prompt or captions.template, captions.model_copy(update={"trigger": ""}))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", words)


def class_pictures(
    base: Base, config: TrainConfig, prompt: str, in_use: list[Bucket], cache_root: Path
) -> Generator[Event, None, Path]:
    """The folder of class pictures; those that are missing are made by the bare base and kept for the next run."""
    if config.prior.folder is not None:
        return Path(config.prior.folder)
    way = (base.prediction_type, config.sample.inference_steps, config.sample.guidance)
    slug = hashlib.sha256(f"{base.hash}/{prompt}/{in_use}/{way}".encode()).hexdigest()[:16]
    folder = cache_root / CLASS_PICTURES / slug
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # another process that wants the same ones waits and finds them
        yield from _make_missing(base, config, prompt, in_use, folder)
    return folder


def _make_missing(base: Base, config: TrainConfig, prompt: str, in_use: list[Bucket], folder: Path) -> Iterator[Event]:
    wanted = [folder / f"{n:04d}.png" for n in range(config.prior.pictures)]
    missing = [(n, path) for n, path in enumerate(wanted) if not path.exists()]
    for bucket in in_use:
        part = [(n, path) for n, path in missing if in_use[n % len(in_use)] == bucket]
        made = generate(
            base,
            [prompt] * len(part),
            seeds=[derive_seed("class", n) for n, _ in part],
            width=bucket.width,
            height=bucket.height,
            inference_steps=config.sample.inference_steps,
            guidance=config.sample.guidance,
            batch_size=config.sample.batch_size,
        )
        for (_, path), picture in zip(part, made, strict=True):
            _save_png(path, picture)
            yield Progress(stage="class pictures", done=sum(p.exists() for p in wanted), total=len(wanted))


def _save_png(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _encode_items(
    base: Base, items: list[Item], table: list[str], config: TrainConfig, cache: TensorCache
) -> Generator[Event, None, dict[Bucket, BucketTensors]]:
    """Latents of all crops on the base's device, by bucket; their captions index `table`."""
    vae_id = f"{base.vae_hash}/{base.vae.dtype}/{base.device.type}{'/tiled' if config.vae_tiling else ''}"
    floor = config.data.mask_floor if config.data.masked_loss else None
    rows: list[EncodedItem] = []
    with base.using("vae"):
        for row in encode_items(items, base.encode_pictures, cache, vae_id, floor):
            rows.append(row)
            yield Progress(stage="pictures", done=len(rows), total=len(items))
    if cache.problem is not None:
        yield Note(level="warning", text=f"The cache could not be written, so nothing was kept: {cache.problem}")
    return dataset.stack_by_bucket(rows, table, base.device)


def _text_source(base: Base, config: TrainConfig, table: list[str], cache: TensorCache) -> TextSource:
    """Frozen encoders: every caption's states, from the cache; learning encoders: token ids."""
    nothing = base.encode_nothing()
    if config.targets.text_encoders_train:
        first, second = base.tokenize(table)
        pipe = base.pipe
        return LiveText(pipe.text_encoder, pipe.text_encoder_2, first, second, nothing)
    encoder_id = f"{base.hash}/{base.dtype}/{base.device.type}"
    encoders = base.using("text_encoder", "text_encoder_2")
    states = encode_texts(table, lambda texts: _as_dict(base.encode_texts(texts)), cache, encoder_id, within=encoders)
    on_device = {name: value.to(base.device) for name, value in states.items()}
    return FrozenText(TextStates(on_device["context"], on_device["pooled"]), nothing)


def _as_dict(states: TextStates) -> dict[str, Tensor]:
    return {"context": states.context, "pooled": states.pooled}
