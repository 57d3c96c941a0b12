"""Errors that a user can act on: what happened, what to do, and an exit code that means something."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class StudioError(Exception):
    """An error shown to the user as two lines: what happened, and how to mend it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n{self.fix}" if self.fix else self.what


class UserInputError(StudioError):
    """A value that the user gave cannot be used."""

    exit_code = 2


class UnknownNameError(UserInputError):
    """A name that is not among the known ones; names the nearest that is."""

    def __init__(self, kind: str, word: str, options: Iterable[str]) -> None:
        known = sorted(options)
        close = nearest(word, known)
        hint = f"Did you mean {close!r}? " if close else ""
        super().__init__(f"There is no {kind} {word!r}.", f"{hint}Known: {', '.join(known)}.")
        self.nearest = close

    def __reduce__(self) -> tuple[type[UserInputError], tuple[str, str]]:
        return UserInputError, (self.what, self.fix)  # crosses process borders as its two lines


class MissingError(StudioError):
    """A base model or a file is not where it should be."""

    exit_code = 3


class FileFormatError(StudioError):
    """A file is not what its name says, or is damaged."""

    exit_code = 4


class DivergedError(StudioError):
    """Training produced NaN or infinity."""

    exit_code = 5


class DiskFullError(StudioError):
    """The disk has no room left."""

    exit_code = 6


class MismatchError(StudioError):
    """Two things that must belong together do not: adapter and base, checkpoint and configuration."""

    exit_code = 7


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option that `word` most likely meant, or None when nothing is close."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None
