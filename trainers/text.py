"""Captions → what SDXL's UNet is conditioned on, from frozen encoders (cached) or from encoders that learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class TextStates:
    """`context`: both encoders' penultimate hidden states side by side; `pooled`: the second one's projection."""

    context: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b p"]


def tokenize(tokenizer: Any, texts: list[str]) -> Int[Tensor, "b l"]:
    """Token ids, padded and cut to the tokenizer's length."""
    encoded = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def token_count(tokenizer: Any, text: str) -> int:
    """Tokens that the text needs, start and end not counted."""
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def split_tokens(tokenizer: Any, word: str) -> list[str]:
    """The pieces that the tokenizer sees a word as; a good trigger is one piece, or few."""
    pieces: list[str] = tokenizer.tokenize(word)
    return [piece.removesuffix("</w>") for piece in pieces]


def encode_tokens(
    text_encoder: nn.Module, text_encoder_2: nn.Module, ids: Int[Tensor, "b l"], ids_2: Int[Tensor, "b l"]
) -> TextStates:
    """SDXL's conditioning (arXiv 2307.01952, sec. 2.1), as diffusers' encode_prompt computes it."""
    one = text_encoder(ids, output_hidden_states=True)
    two = text_encoder_2(ids_2, output_hidden_states=True)
    context = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
    return TextStates(context, two.text_embeds)


Words = tuple[Tensor, Tensor]
"""Captions as a text source has them: states, or token ids of both encoders; a row a caption."""


class TextSource(Protocol):
    """A table of captions; `nothing` (batch 1) is what an empty one stands for."""

    @property
    def nothing(self) -> TextStates: ...

    def choose(self, rows: Int[Tensor, " b"]) -> Words:
        """The captions of these numbers."""
        ...

    def states(self, words: Words) -> TextStates: ...


@dataclass(frozen=True)
class FrozenText:
    """Every caption's states, resident on the device."""

    table: TextStates
    nothing: TextStates

    def choose(self, rows: Int[Tensor, " b"]) -> Words:
        return self.table.context[rows], self.table.pooled[rows]

    def states(self, words: Words) -> TextStates:
        return TextStates(*words)


@dataclass(frozen=True)
class LiveText:
    """Token ids of every caption; the encoders run, with gradients, each time."""

    text_encoder: nn.Module
    text_encoder_2: nn.Module
    ids: Int[Tensor, "t l"]
    ids_2: Int[Tensor, "t l"]
    nothing: TextStates

    def choose(self, rows: Int[Tensor, " b"]) -> Words:
        return self.ids[rows], self.ids_2[rows]

    def states(self, words: Words) -> TextStates:
        return encode_tokens(self.text_encoder, self.text_encoder_2, *words)


def emptied(states: TextStates, nothing: TextStates, empty: Bool[Tensor, " b"]) -> TextStates:
    """`nothing` in the place of those captions that are `empty`."""
    context = torch.where(empty[:, None, None], nothing.context, states.context)
    return TextStates(context, torch.where(empty[:, None], nothing.pooled, states.pooled))
