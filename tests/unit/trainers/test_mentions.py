"""Where prompts speak of subjects."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import UserInputError
from trainers.mentions import Subject, mentions, without, word_weights
from trainers.sdxl import load_base

OCTOPUS, ROCKET = Subject("sks", "octopus"), Subject("zwx", "rocket")
PROMPT = "a sks octopus and a zwx rocket on a blue background"


def said(prompt: str, subject: Subject) -> list[str]:
    return [prompt[one.start : one.end] for one in mentions(prompt, subject)]


def test_a_subject_is_its_trigger_and_the_class_word_soon_after():
    assert said(PROMPT, OCTOPUS) == ["sks octopus"]
    assert said("a SKS big purple Octopus", OCTOPUS) == ["SKS big purple Octopus"]
    assert said("a sks in the sea with an octopus", OCTOPUS) == ["sks"]
    assert said("a sks octopus by a sks octopus", OCTOPUS) == ["sks octopus"] * 2
    assert said("asks octopus, sksy octopus", OCTOPUS) == []
    assert said("a sks octopuses", OCTOPUS) == ["sks"]


def test_the_prompt_of_a_region_leaves_the_others_out():
    assert without(PROMPT, [ROCKET]) == "a sks octopus and a on a blue background"
    assert without(PROMPT, [OCTOPUS, ROCKET]) == "a and a on a blue background"
    assert without(PROMPT, []) == PROMPT


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_base("embedded").pipe.tokenizer


def read(tokenizer: Any, prompt: str, subject: Subject) -> str:
    """The words that the weights point at, which must add up to 1 and be alike."""
    weights = word_weights(tokenizer, prompt, subject)
    assert sum(weights) == pytest.approx(1) and len({weight for weight in weights if weight}) == 1
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode([ids[place] for place, weight in enumerate(weights) if weight]).strip()


def test_the_class_words_tokens_are_looked_at_and_else_the_triggers(tokenizer: Any):
    assert read(tokenizer, PROMPT, OCTOPUS) == "octopus"
    assert read(tokenizer, PROMPT, Subject("zwx", "rocket")) == "rocket"
    assert read(tokenizer, PROMPT, Subject("zwx")) == "zwx"
    assert read(tokenizer, "a sks dog, a zwx dog", Subject("zwx", "dog")) == "dog"
    assert word_weights(tokenizer, "a sks dog, a zwx dog", Subject("zwx", "dog"))[3] == 0


def test_a_prompt_without_the_subject_is_refused_and_so_is_one_too_long(tokenizer: Any):
    with pytest.raises(UserInputError, match="does not say qpl"):
        word_weights(tokenizer, PROMPT, Subject("qpl", "cat"))
    with pytest.raises(UserInputError, match="too far back"):
        word_weights(tokenizer, "very " * 90 + PROMPT, OCTOPUS)
