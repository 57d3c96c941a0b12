"""Where a prompt speaks of a subject, in characters and in tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapters.errors import UserInputError
from trainers.text import token_count


@dataclass(frozen=True)
class Subject:
    """What an adapter learnt, as prompts call it: "sks octopus"."""

    trigger: str
    class_word: str = ""

    def __str__(self) -> str:
        return f"{self.trigger} {self.class_word}".strip()


@dataclass(frozen=True)
class Mention:
    """One place in a prompt, from character `start` to before `end`."""

    start: int
    end: int
    word: int | None
    """Where in it the class word begins, which the base knows; None without one."""


def mentions(prompt: str, subject: Subject) -> list[Mention]:
    """The trigger, wherever it stands as a word of its own, to the class word, if that is one of the next three."""
    what = rf"(?:(?:\s+\w+){{0,2}}?\s+(?P<word>{re.escape(subject.class_word)})(?!\w))?" if subject.class_word else ""
    found = re.finditer(rf"(?<!\w){re.escape(subject.trigger)}(?!\w){what}", prompt, re.IGNORECASE)
    return [
        Mention(match.start(), match.end(), match.start("word") if what and match["word"] else None) for match in found
    ]


def without(prompt: str, others: Sequence[Subject]) -> str:
    """The prompt with these subjects left out: what is to be read where another one is."""
    spans = sorted({(one.start, one.end) for other in others for one in mentions(prompt, other)}, reverse=True)
    for start, end in spans:
        prompt = prompt[:start] + prompt[end:]
    return " ".join(prompt.split())


def word_weights(tokenizer: Any, prompt: str, subject: Subject) -> list[float]:
    """A weight for each of the tokens that the encoders read, adding up to 1 over the subject's words.

    The class word's tokens where the prompt says it, else the trigger's: without its adapter the base knows only the
    former. Raises UserInputError where the prompt does not speak of the subject, or only beyond what is read.
    """
    found = mentions(prompt, subject)
    if not found:
        raise UserInputError(
            f'The prompt "{prompt}" does not say {subject.trigger}.',
            f'--region auto looks for every subject: say "{subject}", or leave its adapter out.',
        )
    known = [one for one in found if one.word is not None] or found
    tokens = [
        place
        for one in known
        for place in range(
            1 + token_count(tokenizer, prompt[: one.start if one.word is None else one.word]),
            1 + token_count(tokenizer, prompt[: one.end]),
        )
    ]
    length = int(tokenizer.model_max_length)
    if max(tokens) >= length - 1:
        raise UserInputError(f'"{subject}" stands too far back in the prompt to be read.', "Shorten the prompt.")
    return [tokens.count(place) / len(tokens) for place in range(length)]
