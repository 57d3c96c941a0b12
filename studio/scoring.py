"""Scores of a job's pictures, one by one, by the bare base, which also draws each prompt without its adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from adapters.digest import file_sha256
from adapters.errors import UserInputError
from adapters.files import AdapterCard
from adapters.formats.open import open_adapter
from studio import scores
from studio.drawing import Drawn, Tell, drawn, recipes
from studio.paths import picture_name
from studio.queue import Queue
from studio.scores import Score
from studio.store import SampleRequest
from trainers.captions import CaptionConfig
from trainers.concept import concept_id
from trainers.decode import decoding, on_white_srgb, upright
from trainers.events import Progress
from trainers.images import picture_paths
from trainers.scores import Subject, features, latents_of
from trainers.sdxl import Base

_TRAINING, _PLAIN = 8, 4
"""Training pictures, and pictures without the adapter, that a subject is known from at most."""
_NOT_HERE = "The pictures that it was trained on are not here."
_NOT_ONE = "Only one adapter of one subject is compared with training pictures."
_TOO_FEW = "It was trained on one picture: it takes two to tell what they have in common."
_NOTHING = "The base sees nothing in its training pictures that its own pictures lack."


@dataclass
class Scoring:
    """Of the pictures of one job, all drawn, with no adapter attached; those that have scores keep them."""

    base: Base
    request: SampleRequest
    run: Path
    queue: Queue
    adapter: Callable[[str], Path]
    """The file that a use names."""
    tell: Tell
    """Hears how far it is before each picture, and may raise to stop it."""
    plain: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])
    """Features of what the base draws from a prompt without its trigger, by prompt and seed."""

    def __post_init__(self) -> None:
        self.found = scores.read(self.run)

    def score(self) -> None:
        """All of them, those of the same adapters after each other."""
        drawings = self.request.drawings
        named = [tuple(use.adapter for use in one.uses) for one in drawings]
        for adapters in dict.fromkeys(named):
            self._row(adapters, [number for number, one in enumerate(named) if one == adapters])

    def _row(self, adapters: Sequence[str], numbers: Sequence[int]) -> None:
        missing = [number for number in numbers if number not in self.found.pictures]
        if not missing:
            return
        cards = [open_adapter(self.adapter(one)).card for one in adapters]
        triggers = [trigger for card in cards for trigger, _ in card.subjects]
        drawings = [self.request.drawings[number] for number in numbers]
        prompts = list(dict.fromkeys((plain_prompt(one.prompt, triggers), one.seed) for one in drawings))[:_PLAIN]
        subject = self._subject(cards, prompts)
        for number in missing:
            self._count()
            if isinstance(subject, Subject):
                with Image.open(self.run / picture_name(number)) as picture:
                    score = Score(subject=subject.score(features(self.base, latents_of(self.base, picture))))
            else:
                score = Score(missing=subject)
            self.found = self.found.having(number, score)
            scores.write(self.run, self.found)
        self._count()

    def _count(self) -> None:
        self.tell(Progress(stage="scores", done=len(self.found.pictures), total=len(self.request.drawings)))

    def _draw_plain(self, wanted: Sequence[tuple[str, int]]) -> None:
        """The base's own pictures of these prompts and seeds."""
        if not wanted:
            return
        request = self.request.model_copy(update={"regions": ()})
        with closing(drawn(self.base, [], recipes(request, self.base, [], wanted), self.tell)) as pictures:
            drawings = list(self._told(pictures))
        for key, one in zip(wanted, drawings, strict=True):
            self._count()
            self.plain[key] = features(self.base, latents_of(self.base, one.image))

    def _told(self, pictures: Iterator[Drawn]) -> Iterator[Drawn]:
        """The same, able to be stopped between two."""
        for one in pictures:
            self._count()
            yield one

    def _subject(self, cards: Sequence[AdapterCard], prompts: Sequence[tuple[str, int]]) -> Subject | str:
        """What the training pictures have in common; or why that cannot be told."""
        if len(cards) != 1 or cards[0].concepts:
            return _NOT_ONE
        paths = training_pictures(self.queue, cards[0])
        if len(paths) < 2:
            return _TOO_FEW if paths else _NOT_HERE
        self._draw_plain([key for key in prompts if key not in self.plain])
        count = min(len(paths), _TRAINING)
        training: list[Tensor] = []
        for path in [paths[number * len(paths) // count] for number in range(count)]:
            self._count()
            with decoding(path) as image:
                training.append(features(self.base, latents_of(self.base, on_white_srgb(upright(image)))))
        return Subject.of(training, [self.plain[key] for key in prompts]) or _NOTHING


def plain_prompt(prompt: str, triggers: Sequence[str]) -> str:
    """The prompt without these words, and single spaces."""
    for trigger in triggers:
        prompt = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", "", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def training_pictures(queue: Queue, card: AdapterCard) -> list[Path]:
    """What the adapter learnt from: the pictures of a training of the file's concept; none where they are gone."""
    for job in queue.list_jobs(kind="train") if card.concept else []:
        captions, folder = job.config["data"]["captions"], Path(job.config["data"]["folder"])
        if (captions["trigger"], captions["class_word"]) != (card.trigger, card.class_word):
            continue
        try:
            paths = picture_paths(folder)
            words = CaptionConfig(trigger=card.trigger, class_word=card.class_word)
            if concept_id(words, map(file_sha256, paths)) == card.concept:
                return paths
        except (UserInputError, OSError):  # moved or deleted since
            continue
    return []
