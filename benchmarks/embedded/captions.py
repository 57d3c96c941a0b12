"""Captions as tables: phrases are tokenised once, and a batch of captions is put together on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from benchmarks.embedded.config import CONTEXT, END_TOKEN, PAD_TOKEN_2, START_TOKEN, VOCABULARY

COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "black": (20, 20, 20), "red": (214, 48, 49), "blue": (41, 98, 255),
    "green": (46, 160, 67), "yellow": (253, 216, 53), "orange": (251, 140, 0), "purple": (142, 36, 170),
    "pink": (244, 143, 177), "gray": (150, 150, 150), "brown": (121, 85, 72), "cyan": (38, 198, 218),
}  # fmt: skip
STYLE_WORDS = ("fluent 3d", "fluent color", "fluent flat", "noto", "noto v1", "twemoji")
POSITIONS = (
    "in the top left corner", "at the top", "in the top right corner", "on the left", "in the center",
    "on the right", "in the bottom left corner", "at the bottom", "in the bottom right corner",
)  # fmt: skip
PREFIXES = ("",) * 10 + (
    "a photo of", "a photo of", "a picture of", "a picture of", "an image of", "an icon of", "a drawing of",
    "an emoji of", "a close-up photo of", "a rendering of",
)  # fmt: skip
SMALL, BIG = ("small", "small", "tiny", "little"), ("big", "big", "large", "huge")
# What follows the first object and what follows the second, when the first stands on the left, or on the right.
LEFT_FIRST = (
    ("on the left and", "on the right"), ("on the left and", "on the right"), ("left and", "right"),
    ("to the left of", ""), ("left of", ""), ("on the left side and", "on the right side"),
)  # fmt: skip
RIGHT_FIRST = (
    ("on the right and", "on the left"), ("right and", "left"), ("to the right of", ""), ("right of", ""),
)  # fmt: skip
UNORDERED = (("next to", ""), ("next to", ""), ("beside", ""), ("and", ""))
BACKGROUNDS = (
    "on a {} background", "on a {} background", "on a {} background", "on a {} background", "against a {} background",
    "with a {} background", ", {} background", "on {}", "in front of a {} wall",
)  # fmt: skip
SLOTS = (
    "prefix", "article", "size", "style", "trigger", "first", "after_first", "article_2", "trigger_2", "second",
    "after_second", "style_end", "background",
)  # fmt: skip
TRIGGER_TOKENS = 3


@dataclass(frozen=True)
class CaptionTables:
    """Every phrase's token ids [R, P] and length [R], and which rows each part of a caption may take."""

    texts: tuple[str, ...]
    tokens: Tensor
    lengths: Tensor
    vowel: Tensor
    names: Tensor  # [concepts, variants]: the label and its tags, padded with the label
    name_counts: Tensor
    groups: dict[str, Tensor]

    def to(self, device: torch.device) -> CaptionTables:
        """The same tables on a device."""
        groups = {key: rows.to(device) for key, rows in self.groups.items()}
        moved = [x.to(device) for x in (self.tokens, self.lengths, self.vowel, self.names, self.name_counts)]
        return CaptionTables(self.texts, *moved, groups)


class _Phrases:
    """Numbers phrases in the order they are first used; row 0 is the empty phrase."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {"": 0}

    def of(self, texts: Sequence[str]) -> list[int]:
        return [self.rows.setdefault(text, len(self.rows)) for text in texts]


def _groups(phrases: _Phrases) -> dict[str, Tensor]:
    pairs = {"left_first": LEFT_FIRST, "right_first": RIGHT_FIRST, "unordered": UNORDERED}
    groups: dict[str, list[int] | list[list[int]]] = {
        "prefix": phrases.of(PREFIXES),
        "article": phrases.of(("a", "an")),
        "style": phrases.of(STYLE_WORDS),
        "style_end": [phrases.of([f"in {s} style", f", {s} style", f", {s}"]) for s in STYLE_WORDS],
        "small": phrases.of(SMALL),
        "big": phrases.of(BIG),
        "position": phrases.of(POSITIONS),
        "background": [phrases.of([b.format(c) for b in BACKGROUNDS]) for c in COLORS],
    } | {key: [phrases.of(pair) for pair in value] for key, value in pairs.items()}
    return {key: torch.tensor(rows) for key, rows in groups.items()}


def build_tables(tokenizer: CLIPTokenizer, names: Sequence[Sequence[str]]) -> CaptionTables:
    """Tokenises every phrase; `names[i]` are concept i's label and then its other names."""
    phrases = _Phrases()
    groups = _groups(phrases)
    widest = max(map(len, names))
    rows = [phrases.of([*n, *[n[0]] * (widest - len(n))]) for n in names]
    texts = tuple(phrases.rows)
    ids = [tokenizer(text, add_special_tokens=False).input_ids if text else [] for text in texts]
    width = max(map(len, ids))
    return CaptionTables(
        texts=texts,
        tokens=torch.tensor([i + [0] * (width - len(i)) for i in ids]),
        lengths=torch.tensor([len(i) for i in ids]),
        vowel=torch.tensor([text[:1] in tuple("aeiou") for text in texts]),
        names=torch.tensor(rows),
        name_counts=torch.tensor([len(n) for n in names]),
        groups=groups,
    )


def assemble(tables: CaptionTables, rows: Tensor, triggers: Tensor, trigger_lengths: Tensor) -> Tensor:
    """Token ids [B, CONTEXT] of the captions whose phrases are `rows` [B, len(SLOTS)].

    `triggers` [B, TRIGGER_TOKENS] are made-up words before the first concept; their lengths may be 0.
    Captions that are too long lose their end, as a tokenizer's truncation does.
    """
    batch = len(rows)
    tokens, lengths = tables.tokens[rows], tables.lengths[rows].clone()
    place = SLOTS.index("trigger")
    tokens[:, place, :TRIGGER_TOKENS] = triggers
    lengths[:, place] = trigger_lengths
    begin = 1 + lengths.cumsum(1) - lengths
    index = begin[..., None] + torch.arange(tokens.shape[-1], device=rows.device)
    inside = torch.arange(tokens.shape[-1], device=rows.device) < lengths[..., None]
    index = torch.where(inside & (index < CONTEXT - 1), index, CONTEXT)
    ids = torch.full((batch, CONTEXT + 1), END_TOKEN, device=rows.device)
    ids.scatter_(1, index.reshape(batch, -1), tokens.reshape(batch, -1))
    ids[:, 0] = START_TOKEN
    return ids[:, :CONTEXT].contiguous()


def second_padding(ids: Tensor) -> Tensor:
    """The same captions as the second tokenizer pads them: id 0 after the first end token."""
    ends = (ids == END_TOKEN).int()
    return torch.where(ends.cumsum(1) - ends > 0, PAD_TOKEN_2, ids)


def as_text(tables: CaptionTables, rows: Tensor) -> str:
    """One caption [len(SLOTS)] in words, without its made-up trigger."""
    return " ".join(tables.texts[r] for r in rows.tolist() if r).replace(" ,", ",")


def random_triggers(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Made-up words of one to three random tokens for a share of the captions, none for the rest."""
    device = generator.device
    tokens = torch.randint(0, VOCABULARY - 2, (count, TRIGGER_TOKENS), device=device, generator=generator)
    lengths = torch.randint(1, TRIGGER_TOKENS + 1, (count,), device=device, generator=generator)
    used = torch.rand(count, device=device, generator=generator) < share
    return tokens, torch.where(used, lengths, 0)
