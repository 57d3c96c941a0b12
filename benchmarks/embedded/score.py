"""Scores a base with the stock pipeline: background colour, left and right, concept; and draws grids to look at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from benchmarks.embedded.captions import COLORS, STYLE_WORDS
from benchmarks.embedded.classifier import Classifier, half
from benchmarks.embedded.config import PICTURE

STEPS, GUIDANCE = 25, 4.5
SHOWN = (
    "a noto octopus on a blue background",
    "a twemoji dog on a red background",
    "a fluent 3d rocket on a yellow background",
    "a noto v1 house on a green background",
    "a twemoji cat on the left and a guitar on the right on a white background",
    "a noto red apple next to an automobile on a purple background",
    "a fluent 3d bear on the left and a hamburger on the right on a cyan background",
    "a small fluent color fox in the top right corner on a pink background",
    "a photo of a robot",
    "a big noto lion on a black background",
    "a fluent flat teddy bear on an orange background",
    "a sks octopus on a gray background",
)


@dataclass(frozen=True)
class Ask:
    """One prompt and what it asks for: concepts as indices (one, or left then right), a colour as an index."""

    prompt: str
    style: int
    color: int
    concepts: tuple[int, ...]


def make_asks(names: Sequence[str], styles_of: Sequence[Sequence[int]], count: int, seed: int = 2026) -> list[Ask]:
    """Fixed prompts, seven single ones to three pairs, over styles that draw each concept."""
    dice, asks = random.Random(seed), []
    for number in range(count):
        first = dice.randrange(len(names))
        style = dice.choice(list(styles_of[first]))
        color = dice.randrange(len(COLORS))
        ground = f"on a {list(COLORS)[color]} background"
        if number % 10 < 7:
            asks.append(Ask(f"a {STYLE_WORDS[style]} {names[first]} {ground}", style, color, (first,)))
            continue
        second = dice.choice([c for c in range(len(names)) if c != first and style in styles_of[c]])
        prompt = f"a {STYLE_WORDS[style]} {names[first]} on the left and a {names[second]} on the right {ground}"
        asks.append(Ask(prompt, style, color, (first, second)))
    return asks


@torch.no_grad()
def generate(
    pipe: StableDiffusionXLPipeline, prompts: Sequence[str], guidance: float = GUIDANCE, seed: int = 0, batch: int = 125
) -> Tensor:
    """Pictures [N, 3, 128, 128] in 0…1 from the stock pipeline; picture i has its own seed, whatever the batch."""
    parts: list[Tensor] = []
    for begin in range(0, len(prompts), batch):
        chunk = list(prompts[begin : begin + batch])
        seeds = [torch.Generator().manual_seed(seed + begin + i) for i in range(len(chunk))]
        out = pipe(
            prompt=chunk, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds, output_type="pt",
            height=PICTURE, width=PICTURE,
        )  # fmt: skip
        parts.append(out.images.float().cpu())
    return torch.cat(parts)


def border_color(image: Tensor) -> Tensor:
    """For pictures [N, 3, H, W] in 0…1, the index of the named colour nearest to the border's median."""
    frame = torch.ones(image.shape[-2:], dtype=torch.bool)
    frame[4:-4, 4:-4] = False
    seen = image[:, :, frame].median(-1).values
    return torch.cdist(seen, torch.tensor(list(COLORS.values())) / 255).argmin(1)


@torch.no_grad()
def score(images: Tensor, asks: Sequence[Ask], classifier: Classifier, device: torch.device) -> dict[str, float]:
    """Shares of the pictures [N, 3, 128, 128] in 0…1 that show what was asked."""
    right_color = border_color(images) == torch.tensor([a.color for a in asks])
    single = [i for i, a in enumerate(asks) if len(a.concepts) == 1]
    pairs = [i for i, a in enumerate(asks) if len(a.concepts) == 2]
    scaled = images.to(device) * 2 - 1
    best = classifier(scaled[single]).topk(5, 1).indices.cpu()
    hits = best == torch.tensor([asks[i].concepts[0] for i in single])[:, None]
    sides = [
        classifier(half(scaled[pairs], torch.full((len(pairs),), r, device=device))).log_softmax(1).cpu()
        for r in (False, True)
    ]
    asked = torch.tensor([asks[i].concepts for i in pairs])
    each = torch.arange(len(pairs))
    straight = sides[0][each, asked[:, 0]] + sides[1][each, asked[:, 1]]
    swapped = sides[0][each, asked[:, 1]] + sides[1][each, asked[:, 0]]
    pair_hits = torch.stack([sides[k].argmax(1) == asked[:, k] for k in (0, 1)]).float()
    result = {
        "prompts": float(len(asks)),
        "background_color": float(right_color.float().mean()),
        "left_right": float((straight > swapped).float().mean()),
        "concept_top1": float(hits[:, 0].float().mean()),
        "concept_top5": float(hits.any(1).float().mean()),
        "pair_concept_top1": float(pair_hits.mean()),
    }
    for style, word in enumerate(STYLE_WORDS):
        of_style = torch.tensor([asks[i].style == style for i in single])
        result[f"concept_top1 {word}"] = float(hits[of_style, 0].float().mean())
    return result


def save_grid(images: Tensor, columns: int, path: Path) -> None:
    """One PNG of pictures [N, 3, 128, 128] in 0…1, two pixels apart."""
    step, rows = PICTURE + 2, -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * step, rows * step), "white")
    for i, picture in enumerate((images.clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()):
        sheet.paste(Image.fromarray(picture), (i % columns * step, i // columns * step))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
