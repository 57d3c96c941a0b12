"""What the stages draw from: the training pictures, their names, and pictures that no training sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from benchmarks.embedded.captions import COLORS, STYLE_WORDS, CaptionTables, build_tables
from benchmarks.embedded.concepts import distinctive_tags, held_out_concepts, name_of, training_concepts
from benchmarks.embedded.data import HELD_OUT_STYLE, STYLES, Emoji, EmojiSet
from benchmarks.embedded.scenes import Bank, SceneSampler, build_bank, compose

_WORDS = "left right top bottom center corner next small big tiny large huge side wall background photo picture"
_RESERVED = frozenset(" ".join([*COLORS, *STYLE_WORDS, _WORDS]).split())


@dataclass(frozen=True)
class Stock:
    """The training concepts, their bank and captions, and a bank of unseen pictures (for PSNR only)."""

    concepts: list[Emoji]
    names: list[str]
    bank: Bank
    tables: CaptionTables
    unseen: Bank

    def styles_of(self) -> list[list[int]]:
        """For each concept the training styles that draw it."""
        out: list[set[int]] = [set() for _ in self.names]
        for concept, style in zip(self.bank.concept.tolist(), self.bank.style.tolist(), strict=True):
            out[concept].add(style)
        return [sorted(s) for s in out]

    def unseen_pictures(self, count: int, seed: int = 7) -> Tensor:
        """Scenes of held-out concepts and of the held-out style, [count, 3, 128, 128] in −1…1."""
        scenes = SceneSampler(self.unseen, self.tables, seed).sample(count)
        return compose(self.unseen, scenes.background, scenes.rows, scenes.placement)


def _bank(emoji: EmojiSet, rows: list[int], concept: list[int], style: list[int], device: torch.device) -> Bank:
    rgba = torch.from_numpy(emoji.pixels[rows]).permute(0, 3, 1, 2)
    return build_bank(rgba, torch.tensor(concept), torch.tensor(style), device)


def build_stock(emoji: EmojiSet, tokenizer_folder: Path, device: torch.device, every: int = 1) -> Stock:
    """Everything on the device; `every` keeps each n-th concept only (dry runs)."""
    concepts = training_concepts(emoji)[::every]
    index = {e.hex: i for i, e in enumerate(concepts)}
    keys = emoji.keys
    seen = [i for i, (style, point) in enumerate(keys) if style in STYLES and point in index]
    held = {e.hex for e in held_out_concepts(emoji)}
    unseen = [
        i for i, (style, point) in enumerate(keys) if point in held or (style == HELD_OUT_STYLE and point in index)
    ]
    bank = _bank(emoji, seen, [index[keys[i][1]] for i in seen], [STYLES.index(keys[i][0]) for i in seen], device)
    other = _bank(emoji, unseen, [0] * len(unseen), [0] * len(unseen), device)
    names = [name_of(e.label) for e in concepts]
    tags = distinctive_tags(concepts, _RESERVED)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tables = build_tables(tokenizer, [[n, *t] for n, t in zip(names, tags, strict=True)])
    return Stock(concepts, names, bank, tables, other)
