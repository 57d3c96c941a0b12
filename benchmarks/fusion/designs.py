"""Every look that the judge is taught: things as five families of designs draw them, on any plain background."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.embedded.concepts import name_of, training_concepts
from benchmarks.embedded.data import HELD_OUT_STYLE, EmojiSet, load_tar
from benchmarks.fusion.look import WINDOW
from benchmarks.fusion.subjects import STYLE_THINGS, reference_things

FAMILIES = {
    HELD_OUT_STYLE: HELD_OUT_STYLE, "twemoji": "twemoji", "noto": "noto", "noto-v1": "noto-v1",
    "fluent-3d": "fluent", "fluent-color": "fluent", "fluent-flat": "fluent",
}  # fmt: skip
"""Style → family: the three of Fluent are one drawing, shaded differently."""
_SMALLEST, _LARGEST = 0.56, 1.16
"""Sides of an object, in windows."""


@dataclass(frozen=True)
class Designs:
    """Pictures of designs, premultiplied RGBA in 0…1, [N, 4, 64, 64]; rows of one look share its number."""

    pixels: Tensor
    look: Tensor
    names: tuple[tuple[str, str], ...]
    """(thing, family) of each look."""

    def rows_of(self, thing: str, family: str) -> Tensor:
        return torch.nonzero(self.look == self.names.index((thing, family))).flatten()

    def to(self, device: torch.device) -> Designs:
        return Designs(self.pixels.to(device), self.look.to(device), self.names)


def designs_of(tar: Path, things: int | None = None) -> Designs:
    """Designs of the benchmark's things and of others that the base knows; `things` limits their number."""
    emoji_set = load_tar(tar)
    wanted = [*reference_things(), *STYLE_THINGS]
    points = {name_of(e.label): e.hex for e in training_concepts(emoji_set)}
    others = [name for name in points if name not in wanted]
    dice = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = wanted + [others[i] for i in dice[: None if things is None else max(0, things - len(wanted))]]
    return _designs(emoji_set, {points[name]: name for name in chosen})


def _designs(emoji_set: EmojiSet, things: dict[str, str]) -> Designs:
    rows = [(i, things[point], FAMILIES[style]) for i, (style, point) in enumerate(emoji_set.keys) if point in things]
    names = tuple(dict.fromkeys((thing, family) for _, thing, family in rows))
    numbers = {name: n for n, name in enumerate(names)}
    pixels = premultiplied(torch.from_numpy(emoji_set.pixels[[i for i, _, _ in rows]]))
    look = torch.tensor([numbers[thing, family] for _, thing, family in rows])
    return Designs(F.avg_pool2d(pixels, pixels.shape[-1] // WINDOW), look, names)


def premultiplied(rgba: Tensor) -> Tensor:
    """uint8 [N, H, W, 4] → [N, 4, H, W] in 0…1, colours times alpha."""
    found = rgba.permute(0, 3, 1, 2).float() / 255
    return torch.cat([found[:, :3] * found[:, 3:], found[:, 3:]], 1)


def save_designs(designs: Designs, folder: Path) -> None:
    """designs.webp, all side by side, and designs.json: a megabyte or two."""
    columns = math.isqrt(len(designs.pixels) - 1) + 1
    sheet = torch.zeros(4, -(-len(designs.pixels) // columns) * WINDOW, columns * WINDOW)
    for number, picture in enumerate(designs.pixels):
        y, x = number // columns * WINDOW, number % columns * WINDOW
        sheet[:, y : y + WINDOW, x : x + WINDOW] = picture
    sheet = torch.cat([sheet[:3] / sheet[3:].clamp_min(1 / 255), sheet[3:]])
    rgba = (sheet.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).contiguous().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgba, "RGBA").save(folder / "designs.webp", quality=85, method=6)
    about = {"look": designs.look.tolist(), "names": designs.names}
    (folder / "designs.json").write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")


def load_designs(folder: Path) -> Designs:
    """What save_designs kept."""
    about = json.loads((folder / "designs.json").read_text(encoding="utf-8"))
    sheet = torch.from_numpy(np.asarray(Image.open(folder / "designs.webp").convert("RGBA")).copy())
    rows = [row.split(WINDOW, 1) for row in sheet.split(WINDOW, 0)]
    pixels = torch.stack([tile for row in rows for tile in row][: len(about["look"])])
    return Designs(premultiplied(pixels), torch.tensor(about["look"]), tuple(map(tuple, about["names"])))


def views(designs: Designs, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Windows [B, 3, 64, 64] in −1…1 of these rows: any size that joint pictures have, a little moved and turned."""
    count, device = len(rows), generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, device=device, generator=generator) * (high - low) + low

    scale = uniform(_SMALLEST, _LARGEST)
    x, y, turn = uniform(-0.16, 0.16), uniform(-0.16, 0.16), uniform(-0.22, 0.22)
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    grid = torch.stack(
        [torch.stack([cos, -sin, -(cos * x - sin * y)], 1), torch.stack([sin, cos, -(sin * x + cos * y)], 1)], 1
    )
    over = F.grid_sample(
        designs.pixels[rows], F.affine_grid(grid, [count, 4, WINDOW, WINDOW], align_corners=False), align_corners=False
    )
    white = (torch.rand(count, 1, 1, 1, device=device, generator=generator) < 0.5).float()
    ground = torch.rand(count, 3, 1, 1, device=device, generator=generator)
    ground = white * (1 - 0.12 * ground) + (1 - white) * ground
    return (over[:, :3] + ground * (1 - over[:, 3:])) * 2 - 1
