"""Words of a prompt that stand for embeddings of their own (textual inversion), while something is drawn."""

from __future__ import annotations

import copy
import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from adapters.errors import MismatchError

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
Words = Mapping[str, Mapping[str, Tensor]]
"""Word → text encoder → embeddings [n, width] (adapters.extras)."""


@dataclass
class Vocabulary:
    """What each text encoder reads in the place of words: text encoder → word → placeholders."""

    spellings: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def spell(self, encoder: str, texts: list[str]) -> list[str]:
        """The texts as that encoder's tokenizer should see them; words are met whole, in either case."""
        words = self.spellings.get(encoder)
        if not words:
            return texts
        longest_first = sorted(words, key=len, reverse=True)
        pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
        by_lower = {word.lower(): spelling for word, spelling in words.items()}
        return [pattern.sub(lambda match: by_lower[match[0].lower()], text) for text in texts]


@contextmanager
def speaking(pipe: Any, vocabulary: Vocabulary, words: Words) -> Generator[None]:
    """Within, `words` mean their embeddings; afterwards pipe, tokenizers and encoders are the very ones from before.

    Raises:
        MismatchError: embeddings of another width than an encoder's.
    """
    with ExitStack() as stack:
        for encoder, tokenizer in TOKENIZERS.items():
            known = {word: found[encoder] for word, found in words.items() if encoder in found}
            if known:
                stack.enter_context(_one_speaking(pipe, encoder, tokenizer, vocabulary, known))
        yield


@contextmanager
def _one_speaking(
    pipe: Any, encoder: str, tokenizer: str, vocabulary: Vocabulary, words: Mapping[str, Tensor]
) -> Generator[None]:
    model: Any = pipe.components[encoder]
    plain: CLIPTokenizer = pipe.components[tokenizer]
    embedding: nn.Embedding = model.get_input_embeddings()
    rows = torch.cat([embedding.weight, *(_fitting(word, given, embedding) for word, given in words.items())])
    longer, before = copy.deepcopy(plain), dict(vocabulary.spellings.get(encoder, {}))
    spellings: dict[str, str] = {}
    for word, given in words.items():
        places = [f"<word-{len(longer) + number}>" for number in range(len(given))]
        longer.add_tokens(places, special_tokens=True)
        spellings[word] = " ".join(places)
    pooler, end = _pooler(model), plain.eos_token_id
    said = getattr(pooler, "eos_token_id", None)
    vocabulary.spellings[encoder] = before | spellings
    setattr(pipe, tokenizer, longer)
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=True))
    if said is not None:
        pooler.eos_token_id = end  # SDXL's says 2, which means: the highest number, and placeholders are higher
    try:
        yield
    finally:
        if said is not None:
            pooler.eos_token_id = said
        model.set_input_embeddings(embedding)
        setattr(pipe, tokenizer, plain)
        vocabulary.spellings[encoder] = before


def _fitting(word: str, given: Tensor, embedding: nn.Embedding) -> Tensor:
    if given.ndim != 2 or given.shape[1] != embedding.embedding_dim:
        raise MismatchError(
            f"{word} has embeddings of {tuple(given.shape)}, but this base's have {embedding.embedding_dim} numbers.",
            "Use the adapter with the architecture it was made for.",
        )
    return given.to(embedding.weight)


def _pooler(model: Any) -> Any:
    """The module that looks for the end of the text."""
    return getattr(model, "text_model", model)
