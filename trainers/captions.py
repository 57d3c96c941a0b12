"""Captions: files beside the pictures, or a template with trigger word and class; variants of tag lists."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adapters.errors import UserInputError, nearest
from trainers.images import Picture, list_names
from trainers.seeds import derive_seed

CAPTION_SUFFIXES = (".txt", ".caption")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_KNOWN = ("trigger", "class")


class CaptionConfig(BaseModel):
    """What the model reads with each picture."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    trigger: str = Field(min_length=1, description="the word that will stand for the subject")
    class_word: str = Field(default="", description="what kind of thing the subject is: dog, backpack, painting")
    template: str = Field(
        default="a photo of a {trigger} {class}", description="caption of a picture without a caption file"
    )
    from_files: bool = Field(default=True, description="read captions from .txt or .caption files beside the pictures")
    variants: int = Field(default=4, ge=1, description="captions a picture when tags are shuffled or dropped")
    shuffle_tags: bool = Field(default=False, description="shuffle comma-separated tags")
    keep_tokens: int = Field(default=1, ge=0, description="tags at the front that are neither moved nor dropped")
    tag_dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a tag is left out")
    dropout: float = Field(
        default=0.0, ge=0, le=1, description="probability that a picture is shown with an empty caption"
    )

    @field_validator("trigger", "class_word")
    @classmethod
    def _one_space(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("template")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        if problem := placeholder_problem(value):
            raise ValueError(problem)
        return value


def placeholder_problem(text: str) -> str | None:
    """A sentence on the first {word} that captions do not know, or None."""
    for name in _PLACEHOLDER.findall(text):
        if name not in _KNOWN:
            near = nearest(name, _KNOWN)
            hint = f"did you mean {{{near}}}?" if near else "known are {trigger} and {class}"
            return f"unknown placeholder {{{name}}} in {text!r}: {hint}"
    return None


def fill(text: str, config: CaptionConfig) -> str:
    """The text with {trigger} and {class} filled in, and single spaces."""
    return filled(text, config.trigger, config.class_word)


def filled(text: str, trigger: str, class_word: str) -> str:
    """The text with these words where {trigger} and {class} stand, and single spaces."""
    words = {"trigger": trigger, "class": class_word}
    return " ".join(_PLACEHOLDER.sub(lambda match: words.get(match[1], match[0]), text).split())


def caption_file(picture: Path) -> Path | None:
    """The caption file beside a picture, if there is one."""
    files = (picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path for path in files if path.is_file()), None)


def _read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 if its byte-order mark says so."""
    try:
        raw = path.read_bytes()
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserInputError(f"The caption {path} is not text in UTF-8.", "Save it as UTF-8.") from error
    except OSError as error:
        raise UserInputError(f"The caption {path} cannot be read: {error.strerror}.", "Check the file.") from error


def has_word(text: str, word: str) -> re.Match[str] | None:
    """Where a text says a word as a whole, in either case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)


def _with_trigger(text: str, config: CaptionConfig) -> str:
    """`text`, with the trigger put before the class word, or at the front, unless it is already there."""
    if has_word(text, config.trigger):
        return text
    place = has_word(text, config.class_word) if config.class_word else None
    if place is None:
        return f"{config.trigger}, {text}"
    return f"{text[: place.start()]}{config.trigger} {text[place.start() :]}"


def _own_caption(picture: Picture, config: CaptionConfig) -> str | None:
    """What the picture's caption file says, filled in; None without a file or with an empty one."""
    path = caption_file(picture.path) if config.from_files else None
    if path is None:
        return None
    text = _read_text(path)
    if problem := placeholder_problem(text):
        raise UserInputError(f"{path.name}: {problem}", "Correct the caption file.")
    return fill(text, config) or None


def caption_of(picture: Picture, config: CaptionConfig) -> str:
    """The picture's caption: its file's (with the trigger added if missing), else the filled-in template."""
    own = _own_caption(picture, config)
    return fill(config.template, config) if own is None else _with_trigger(own, config)


def caption_warnings(pictures: Sequence[Picture], config: CaptionConfig) -> list[str]:
    """Sentences on captions that may not be as meant: the trigger added, or files for some pictures only."""
    own = {picture.path.name: _own_caption(picture, config) for picture in pictures}
    added = [name for name, text in own.items() if text is not None and not has_word(text, config.trigger)]
    without = [name for name, text in own.items() if text is None]
    warnings: list[str] = []
    if added:
        warnings.append(f"The trigger {config.trigger!r} was missing and has been added: {list_names(added)}.")
    if without and len(without) < len(own):
        warnings.append(f"Some pictures have caption files; these use the template: {list_names(without)}.")
    return warnings


def caption_variants(caption: str, config: CaptionConfig, seed_text: str) -> list[str]:
    """Up to `config.variants` different captions: as it is, then with tags shuffled or dropped as configured.

    The first `keep_tokens` tags stay in front; a tag with the trigger in it is never dropped. All derive from
    `seed_text`.
    """
    tags = [tag for tag in (part.strip() for part in caption.split(",")) if tag]
    if len(tags) < 2 or not (config.shuffle_tags or config.tag_dropout):
        return [caption]
    found = {caption: None}
    for attempt in range(4 * config.variants):  # short lists have few different variants: give up after a while
        if len(found) == config.variants:
            break
        if variant := ", ".join(_vary(tags, config, f"{seed_text}/{attempt}")):
            found.setdefault(variant)
    return list(found)


def _vary(tags: list[str], config: CaptionConfig, seed_text: str) -> list[str]:
    front, rest = tags[: config.keep_tokens], list(enumerate(tags[config.keep_tokens :]))
    if config.tag_dropout:
        bound = int(config.tag_dropout * 2**63)
        rest = [
            (index, tag)
            for index, tag in rest
            if has_word(tag, config.trigger) or derive_seed(seed_text, "drop", index) >= bound
        ]
    if config.shuffle_tags:
        rest.sort(key=lambda entry: derive_seed(seed_text, "order", entry[0]))
    return front + [tag for _, tag in rest]
