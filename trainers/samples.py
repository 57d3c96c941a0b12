"""Pictures while it trains, always from the same noise, so that two steps compare."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from diffusers.utils import make_image_grid  # pyright: ignore[reportPrivateImportUsage]
from PIL import Image

from adapters.atomic import atomic_path
from trainers.captions import fill
from trainers.config import TrainConfig
from trainers.events import Event, Progress, Sampled
from trainers.sdxl import Base, generate


def sample_prompts(config: TrainConfig) -> list[str]:
    """The configured prompts, or the caption's template, with trigger and class filled in."""
    captions = config.data.captions
    return [fill(prompt, captions) for prompt in config.sample.prompts or (captions.template,)]


def draw(base: Base, config: TrainConfig, out: Path, step: int) -> Iterator[Event]:
    """`sample.count` pictures a prompt into `out`/samples/step-NNNNNN.png: one row a prompt."""
    prompts, count = sample_prompts(config), config.sample.count
    wanted = [prompt for prompt in prompts for _ in range(count)]
    resolution = config.data.resolution or base.native_resolution
    side = resolution // base.size_step * base.size_step
    pictures: list[Image.Image] = []
    for picture in generate(
        base,
        wanted,
        seeds=[config.seed + n for _ in prompts for n in range(count)],
        width=side,
        height=side,
        inference_steps=config.sample.inference_steps,
        guidance=config.sample.guidance,
        batch_size=config.sample.batch_size,
    ):
        pictures.append(picture)
        yield Progress(stage="samples", done=len(pictures), total=len(wanted))
    path = out / "samples" / f"step-{step:06d}.png"
    columns = count if len(prompts) > 1 else math.ceil(math.sqrt(count))
    with atomic_path(path) as temporary:
        grid(pictures, columns).save(temporary, format="PNG")
    yield Sampled(step=step, path=path)


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows of `columns`; the last row is filled up with white."""
    rows = math.ceil(len(pictures) / columns)
    blank = Image.new("RGB", pictures[0].size, "white")
    return make_image_grid(pictures + [blank] * (rows * columns - len(pictures)), rows=rows, cols=columns)
