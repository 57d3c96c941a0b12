"""What was measured of a job's pictures (trainers.scores): RUN/scores.json. Imports no torch: the pages read it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.atomic import atomic_path

_NAME = "scores.json"


class Score(BaseModel):
    """Of one picture: how like its subject and its prompt, 0 to 100 and a little beyond; None where it is unknown."""

    model_config = ConfigDict(frozen=True)
    subject: float | None = None
    prompt: float | None = None
    missing: tuple[str, ...] = ()
    """Why there are numbers that are not, in sentences."""


class Scores(BaseModel):
    """By the numbers of the pictures."""

    model_config = ConfigDict(frozen=True)
    pictures: dict[int, Score] = {}

    def having(self, number: int, score: Score) -> Scores:
        return Scores(pictures={**self.pictures, number: score})


def read(run: Path) -> Scores:
    """What is there so far; nothing where there is no file, or none of ours."""
    try:
        return Scores.model_validate_json((run / _NAME).read_bytes())
    except (OSError, ValidationError):
        return Scores()


def write(run: Path, scores: Scores) -> None:
    with atomic_path(run / _NAME) as part:
        part.write_text(scores.model_dump_json(), encoding="utf-8")
