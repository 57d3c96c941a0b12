"""Captioned scenes, drawn and composed on the device: thousands a second, so that training never waits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.embedded.captions import COLORS, SLOTS, CaptionTables, assemble, random_triggers
from benchmarks.embedded.config import PICTURE

# Each picture is kept at four sizes, area-averaged, in the middle of the same square: a small object is drawn from
# a copy at most 1.5 times its size, so that plain bilinear sampling does not alias.
LEVELS = (1.0, 0.75, 0.5, 0.375)
COLOR_JITTER = 14 / 255


@dataclass(frozen=True)
class Bank:
    """Pictures with premultiplied alpha, uint8 [levels, N, 4, 128, 128], and what each row N shows."""

    pixels: Tensor
    concept: Tensor
    style: Tensor
    style_rows: Tensor  # [styles, most], padded by repetition: rows of one style
    style_counts: Tensor
    levels: Tensor  # LEVELS on the device: making it anew at each draw would wait for the device

    @property
    def device(self) -> torch.device:
        return self.pixels.device


def _levels(rgba: Tensor) -> Tensor:
    """uint8 [n, 4, 128, 128] → uint8 [levels, n, 4, 128, 128], premultiplied."""
    picture = rgba.float() / 255
    picture = torch.cat([picture[:, :3] * picture[:, 3:], picture[:, 3:]], 1)
    out = [picture]
    for level in LEVELS[1:]:
        side = round(PICTURE * level)
        small = F.interpolate(picture, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        pad = (PICTURE - side) // 2
        out.append(F.pad(small, (pad, PICTURE - side - pad, pad, PICTURE - side - pad)))
    return (torch.stack(out) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def build_bank(rgba: Tensor, concept: Tensor, style: Tensor, device: torch.device) -> Bank:
    """The bank of uint8 RGBA pictures [N, 4, 128, 128] on a device."""
    pixels = torch.cat([_levels(part.to(device)) for part in rgba.split(256)], 1)
    rows = [torch.nonzero(style == s).flatten() for s in range(int(style.max()) + 1)]
    rows = [r if len(r) else torch.zeros(1, dtype=torch.long) for r in rows]
    most = max(map(len, rows))
    padded = torch.stack([r.repeat(-(-most // len(r)))[:most] for r in rows])
    counts = torch.tensor([len(r) for r in rows])
    return Bank(pixels, *(x.to(device) for x in (concept, style, padded, counts, torch.tensor(LEVELS))))


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes: backgrounds [B, 3], objects [B, n, 5] (scale, x, y in −1…1, turn, shown) and their rows."""

    background: Tensor
    rows: Tensor
    placement: Tensor
    time_ids: Tensor
    phrases: Tensor
    ids: Tensor
    color: Tensor
    left_first: Tensor  # 1: first object left, 0: right, −1: one object

    def __len__(self) -> int:
        return len(self.background)


def draw_object(bank: Bank, rows: Tensor, placement: Tensor) -> Tensor:
    """Premultiplied RGBA [B, 4, 128, 128] of one object a scene, turned, scaled and moved."""
    scale, x, y, turn = placement[:, :4].unbind(1)
    level = (scale[:, None] <= bank.levels[1:]).sum(1)
    picture = bank.pixels[level, rows].float() / 255
    factor = scale / bank.levels[level]
    cos, sin = torch.cos(turn) / factor, torch.sin(turn) / factor
    top = torch.stack([cos, -sin, -(cos * x - sin * y)], 1)
    bottom = torch.stack([sin, cos, -(sin * x + cos * y)], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), [len(rows), 4, PICTURE, PICTURE], align_corners=False)
    return F.grid_sample(picture, grid, align_corners=False)


def compose(bank: Bank, background: Tensor, rows: Tensor, placement: Tensor) -> Tensor:
    """Pictures [B, 3, 128, 128] in −1…1: each object over what lies below; backgrounds [B, 3] or [B, 3, 128, 128]."""
    image = background if background.dim() == 4 else background[:, :, None, None].expand(-1, -1, PICTURE, PICTURE)
    for k in range(rows.shape[1]):
        over = draw_object(bank, rows[:, k], placement[:, k]) * placement[:, k, 4, None, None, None]
        image = image * (1 - over[:, 3:]) + over[:, :3]
    return (image * 2 - 1).clamp(-1, 1)


def render(bank: Bank, scenes: Scenes) -> Tensor:
    """The scenes' pictures; those whose original size is below 128 px are blurred accordingly."""
    image = compose(bank, scenes.background, scenes.rows, scenes.placement)
    for size, part in low_resolution_parts(len(scenes)):
        small = F.interpolate(image[part], size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        image[part] = F.interpolate(small, size=(PICTURE, PICTURE), mode="bilinear", align_corners=False)
    return image


def low_resolution_parts(batch: int) -> list[tuple[int, slice]]:
    """The first scenes of a batch pose as upscaled small originals: (original side, which scenes)."""
    share = batch // 32
    return [(size, slice(i * share, (i + 1) * share)) for i, size in enumerate((40, 64, 96))]


class SceneSampler:
    """Draws random scenes with exact captions, all on the bank's device."""

    def __init__(self, bank: Bank, tables: CaptionTables, seed: int) -> None:
        self.bank, self.tables = bank, tables.to(bank.device)
        self.generator = torch.Generator(bank.device).manual_seed(seed)
        self.colors = torch.tensor(list(COLORS.values()), device=bank.device) / 255

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """`count` numbers between low and high."""
        return torch.rand(count, device=self.bank.device, generator=self.generator) * (high - low) + low

    def below(self, count: int, high: int) -> Tensor:
        """`count` integers from 0 to high − 1."""
        return torch.randint(0, high, (count,), device=self.bank.device, generator=self.generator)

    def chance(self, count: int, share: float) -> Tensor:
        """`count` booleans, true for about this share."""
        return self.uniform(count) < share

    def pick(self, group: str, count: int) -> Tensor:
        """Random phrase rows (or pairs of rows) of a group."""
        rows = self.tables.groups[group]
        return rows[self.below(count, len(rows))]

    def same_style(self, rows: Tensor) -> Tensor:
        """For each bank row another random row of its style."""
        style = self.bank.style[rows]
        index = (self.uniform(len(rows)) * self.bank.style_counts[style]).long()
        return self.bank.style_rows[style, index]

    def names(self, rows: Tensor) -> Tensor:
        """Phrase rows naming each bank row's concept: mostly its label, else another name."""
        concept, count = self.bank.concept[rows], len(rows)
        other = (self.uniform(count) * self.tables.name_counts[concept]).long()
        return self.tables.names[concept, torch.where(self.chance(count, 0.15), other, 0)]

    def sample(self, batch: int) -> Scenes:
        """A batch of random scenes."""
        rows = torch.stack([first := self.below(batch, len(self.bank.concept)), self.same_style(first)], 1)
        two, left = self.chance(batch, 0.38), self.chance(batch, 0.5)
        single, cell, size = self._single(batch)
        pair = self._pair(batch, left)
        placement = torch.where(two[:, None, None], pair, single)
        phrases = self._phrases(rows, two, left, cell, size)
        color = self._background(batch, phrases)
        jitter = (torch.rand(batch, 3, device=self.bank.device, generator=self.generator) * 2 - 1) * COLOR_JITTER
        time_ids = self._micro_conditions(batch, placement)
        triggers = random_triggers(batch, 0.1, self.generator)
        ids = assemble(self.tables, phrases, *triggers)
        background = (self.colors[color] + jitter).clamp(0, 1)
        order = torch.where(two, left.long(), -1)
        return Scenes(background, rows, placement, time_ids, phrases, ids, color, order)

    def _single(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """One object: its placement, the cell its caption names (−1: none), and size (−1 small, 1 big, 0 unsaid)."""
        kind = self.uniform(batch)
        placed, small = kind < 0.2, (kind >= 0.2) & (kind < 0.3)
        scale = torch.where(placed, self.uniform(batch, 0.32, 0.52), self.uniform(batch, 0.5, 0.98))
        scale = torch.where(small, self.uniform(batch, 0.26, 0.44), scale)
        cell = self.below(batch, 9)
        room = 1 - scale
        free = 0.75 * room
        x = torch.where(placed, (cell % 3 - 1) * room, self.uniform(batch, -1, 1) * free) + self.uniform(
            batch, -0.05, 0.05
        )
        y = torch.where(placed, (cell // 3 - 1) * room, self.uniform(batch, -1, 1) * free) + self.uniform(
            batch, -0.05, 0.05
        )
        shown = torch.ones_like(scale)
        first = torch.stack([scale, x, y, self.uniform(batch, -0.2, 0.2), shown], 1)
        second = torch.stack([shown, shown * 5, shown * 5, shown * 0, shown * 0], 1)
        size = torch.where(small | (placed & (scale < 0.4)), -1, torch.where(scale > 0.85, 1, 0))
        size = torch.where(self.chance(batch, 0.5), size, 0)
        return torch.stack([first, second], 1), torch.where(placed & self.chance(batch, 0.9), cell, -1), size

    def _pair(self, batch: int, left: Tensor) -> Tensor:
        """Two objects side by side; `left` says that the first one stands on the left."""
        side = torch.where(left, -1.0, 1.0)
        objects: list[Tensor] = []
        for sign in (side, -side):
            x = 0.48 * sign + self.uniform(batch, -0.04, 0.04)
            y, turn = self.uniform(batch, -0.28, 0.28), self.uniform(batch, -0.15, 0.15)
            objects.append(torch.stack([self.uniform(batch, 0.38, 0.52), x, y, turn, torch.ones_like(x)], 1))
        return torch.stack(objects, 1)

    def _phrases(self, rows: Tensor, two: Tensor, left: Tensor, cell: Tensor, size: Tensor) -> Tensor:
        """The caption's phrases [B, len(SLOTS)], background still empty."""
        count, none = len(rows), torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        style, groups = self.bank.style[rows[:, 0]], self.tables.groups
        said = self.chance(count, 0.85)
        ending = said & self.chance(count, 0.15)
        style_end = groups["style_end"][style, self.below(count, groups["style_end"].shape[1])]
        small, big = self.pick("small", count), self.pick("big", count)
        out = {
            "prefix": self.pick("prefix", count),
            "style": torch.where(said & ~ending, groups["style"][style], 0),
            "size": torch.where(two | (size == 0), none, torch.where(size < 0, small, big)),
            "first": self.names(rows[:, 0]),
            "second": torch.where(two, self.names(rows[:, 1]), 0),
            "style_end": torch.where(ending, style_end, 0),
        }
        pairs = torch.where(left[:, None], self.pick("left_first", count), self.pick("right_first", count))
        pairs = torch.where(self.chance(count, 0.25)[:, None], self.pick("unordered", count), pairs)
        position = torch.where(cell >= 0, groups["position"][cell.clamp(min=0)], 0)
        out["after_first"] = torch.where(two, pairs[:, 0], position)
        out["after_second"] = torch.where(two, pairs[:, 1], 0)
        bare = (out["style"] == 0) & (out["size"] == 0)
        out["article"] = self._article(bare, out["first"])
        out["article_2"] = torch.where(two, self._article(torch.ones_like(two), out["second"]), 0)
        return torch.stack([out.get(slot, none) for slot in SLOTS], 1)

    def _article(self, bare: Tensor, name: Tensor) -> Tensor:
        """ "a", or "an" before a bare vowel (mostly), or nothing now and then."""
        an = (bare & self.tables.vowel[name] & self.chance(len(name), 0.8)).long()
        return torch.where(self.chance(len(name), 0.06), 0, self.tables.groups["article"][an])

    def _background(self, batch: int, phrases: Tensor) -> Tensor:
        """Draws the colours [B] and writes the background's phrase into `phrases` (unsaid ones are mostly white)."""
        said = self.chance(batch, 0.9)
        color = self.below(batch, len(COLORS))
        color = torch.where(~said & self.chance(batch, 0.5), 0, color)
        rows = self.tables.groups["background"]
        row = rows[color, self.below(batch, rows.shape[1])]
        phrases[:, SLOTS.index("background")] = torch.where(said, row, 0)
        return color

    def _micro_conditions(self, batch: int, placement: Tensor) -> Tensor:
        """SDXL's time ids [B, 6]; moves the objects of the scenes that pose as crops of wider or taller pictures."""
        side = float(PICTURE)
        cropped, wide = self.chance(batch, 0.15), self.chance(batch, 0.5)
        extra = torch.where(cropped, self.uniform(batch, 8, 64).round(), 0)
        offset = (self.uniform(batch) * (extra + 1)).floor()
        move = (extra / 2 - offset) / (side / 2)
        placement[:, :, 1] += (move * wide)[:, None]
        placement[:, :, 2] += (move * ~wide)[:, None]
        larger = torch.where(self.chance(batch, 0.25), self.uniform(batch, 1, 10), 1.0)
        height = ((side + extra * ~wide) * larger).round()
        width = ((side + extra * wide) * larger).round()
        for size, part in low_resolution_parts(batch):
            height[part] = (height[part] / larger[part] * size / side).round()
            width[part] = (width[part] / larger[part] * size / side).round()
        target = torch.full_like(height, side)
        return torch.stack([height, width, offset * ~wide, offset * wide, target, target], 1)
