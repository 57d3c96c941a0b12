"""Scores of a job's pictures, one by one, by the bare base, which also draws their prompts without their adapters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

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
from trainers.scores import Looks, Trait, features, latents_of
from trainers.sdxl import Base

_TRAINING, _PLAIN = 8, 4
"""Training pictures, and pictures without the adapter, that a subject is known from at most."""
_SEEDS = 3
"""Pictures of each prompt without the adapter; not from the seed of the pictures that are scored."""
_NOT_HERE = "The pictures that it was trained on are not here."
_NOT_ONE = "Only one adapter of one subject is compared with training pictures."
_TOO_FEW = "It was trained on one picture: it takes two to tell what they have in common."
_NOTHING = "The base sees nothing in its training pictures that its own pictures lack."
_NO_CLASS = "Its file does not say what it is: what else a prompt asks for is not known."
_ASKS_NOTHING = "A prompt that asks for the subject alone has no bar."
_SAME = "The base draws the prompt as it draws the subject alone."
_EMPTY = frozenset(("a", "an", "the", "of", "and", "photo", "picture", "image"))
"""Words that ask for nothing."""
Asked = tuple[str, int]
"""A prompt and a seed."""


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
    plain: dict[Asked, Looks] = field(default_factory=dict[Asked, Looks])
    """Of what the base draws without an adapter."""

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
        asked = {n: (plain_prompt((one := self.request.drawings[n]).prompt, triggers), one.seed) for n in numbers}
        subject = self._subject(cards, list(dict.fromkeys(asked.values())))
        prompts = {one: self._prompt(cards, *one) for one in dict.fromkeys(asked[n] for n in missing)}
        for number in missing:
            self._count()
            score = self._of(number, subject, prompts[asked[number]])
            self.found = self.found.having(number, score)
            scores.write(self.run, self.found)
        self._count()

    def _of(self, number: int, subject: Trait | str, prompt: Trait | str) -> Score:
        """Of one picture; what cannot be told is a sentence."""
        traits, values = {"subject": subject, "prompt": prompt}, dict[str, float]()
        if any(isinstance(trait, Trait) for trait in traits.values()):
            with Image.open(self.run / picture_name(number)) as picture:
                looks = features(self.base, latents_of(self.base, picture))
            values = {name: trait.score(looks) for name, trait in traits.items() if isinstance(trait, Trait)}
        return Score(**values, missing=tuple(trait for trait in traits.values() if isinstance(trait, str)))

    def _count(self) -> None:
        self.tell(Progress(stage="scores", done=len(self.found.pictures), total=len(self.request.drawings)))

    def _drawn(self, wanted: Sequence[Asked]) -> list[Looks]:
        """The base's own pictures of these prompts and seeds; each is drawn once a job."""
        if missing := [key for key in dict.fromkeys(wanted) if key not in self.plain]:
            request = self.request.model_copy(update={"regions": ()})
            with closing(drawn(self.base, [], recipes(request, self.base, [], missing), self.tell)) as pictures:
                drawings = list(self._told(pictures))
            for key, one in zip(missing, drawings, strict=True):
                self._count()
                self.plain[key] = features(self.base, latents_of(self.base, one.image))
        return [self.plain[key] for key in wanted]

    def _told(self, pictures: Iterator[Drawn]) -> Iterator[Drawn]:
        """The same, able to be stopped between two."""
        for one in pictures:
            self._count()
            yield one

    def _subject(self, cards: Sequence[AdapterCard], asked: Sequence[Asked]) -> Trait | str:
        """What the training pictures have in common; or why that cannot be told."""
        if len(cards) != 1 or cards[0].concepts:
            return _NOT_ONE
        paths = training_pictures(self.queue, cards[0])
        if len(paths) < 2:
            return _TOO_FEW if paths else _NOT_HERE
        without = self._drawn([key for turn in range(_SEEDS) for key in _seeded(asked, turn)][:_PLAIN])
        count = min(len(paths), _TRAINING)
        training: list[Looks] = []
        for path in [paths[number * len(paths) // count] for number in range(count)]:
            self._count()
            with decoding(path) as image:
                training.append(features(self.base, latents_of(self.base, on_white_srgb(upright(image)))))
        return Trait.of(training, without) or _NOTHING

    def _prompt(self, cards: Sequence[AdapterCard], prompt: str, seed: int) -> Trait | str:
        """What the base's pictures of the prompt have in common beyond the subjects' class; or why there is nothing."""
        classes = [word for card in cards for _, word in card.subjects]
        if not classes or not all(classes):
            return _NO_CLASS
        if not asks_more(prompt, classes):
            return _ASKS_NOTHING
        bare = " and ".join(f"a {word}" for word in dict.fromkeys(classes))
        asked, alone = (
            [key for turn in range(_SEEDS) for key in _seeded([(text, seed)], turn)] for text in (prompt, bare)
        )
        looks = self._drawn([*asked, *alone])
        return Trait.clearest(looks[:_SEEDS], looks[_SEEDS:]) or _SAME


def _seeded(asked: Sequence[Asked], turn: int) -> list[Asked]:
    """The same prompts from another seed each turn, none of them the given one."""
    return [(prompt, (seed + turn + 1) % 2**63) for prompt, seed in asked]


def asks_more(prompt: str, classes: Sequence[str]) -> bool:
    """Whether a prompt without triggers has a word beside those of the classes."""
    words, known = (set(re.findall(r"\w+", text.lower())) for text in (prompt, " ".join(classes)))
    return bool(words - known - _EMPTY)


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
