"""Pictures by recipes: adapters on, regions set, drawn, and the base left as it was."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from adapters.adapter_set import AdapterSet
from adapters.digest import file_sha256
from adapters.errors import UserInputError
from adapters.extras import summed
from adapters.formats.open import AnyFile, attach_any
from studio import __version__
from studio.auto_regions import FoundRegions
from studio.recipe import AdapterUse, Recipe, save_png
from studio.regions import drawing_regions, places
from trainers.captions import has_word
from trainers.events import Event, Note
from trainers.fast.sampling import fast_sampling
from trainers.places import is_auto, parse_regions
from trainers.sdxl import Base, Routing, generate

Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Loaded:
    """An adapter file that was opened, and how it is to act."""

    path: Path
    file: AnyFile
    strength: float = 1.0
    part: str | None = None

    def use(self) -> AdapterUse:
        return AdapterUse(file=str(self.path), sha256=file_sha256(self.path), strength=self.strength, part=self.part)


@dataclass(frozen=True)
class Drawn:
    """A picture; `number` counts those of its call."""

    recipe: Recipe
    image: Image.Image
    number: int
    found: FoundRegions | None

    def save(self, path: Path, tell: Tell) -> None:
        """As PNG with its recipe; where regions were found, their picture beside it."""
        save_png(path, self.image, (self.recipe,))
        if self.found is None:
            return
        self.found.save(path, self.number, self.image.size)
        for subject in self.found.unplaced(self.number):
            warn(tell, f"No place was found for {subject}: the base may draw too few things. Another seed may.")


class Settings(Protocol):
    """How pictures are drawn, but for prompt, seed and adapters; `size` None is the base's own."""

    @property
    def negative(self) -> str: ...
    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def regions(self) -> Sequence[str]: ...


def recipes(
    settings: Settings, base: Base, loaded: Sequence[Loaded], pictures: Iterable[tuple[str, int]]
) -> list[Recipe]:
    """One recipe for each prompt and seed of `pictures`."""
    uses = tuple(one.use() for one in loaded)
    return [
        Recipe(
            prompt=prompt,
            negative=settings.negative,
            seed=seed,
            size=settings.size or (base.native_resolution, base.native_resolution),
            steps=settings.steps,
            guidance=settings.guidance,
            scheduler=settings.scheduler,
            adapters=uses,
            base=base.name,
            base_hash=base.hash,
            version=__version__,
            regions=tuple(settings.regions),
        )
        for prompt, seed in pictures
    ]


def warn(tell: Tell, text: str) -> None:
    """Something that the user may want to act on."""
    tell(Note(level="warning", text=text))


def drawn(base: Base, loaded: Sequence[Loaded], wanted: Sequence[Recipe], tell: Tell) -> Generator[Drawn]:
    """A picture for each recipe; they may differ in prompt and seed alone. Close it, and all adapters are off again."""
    first, files = wanted[0], [one.file for one in loaded]
    told = [" ".join([prompt, *first.regions]) for prompt in dict.fromkeys(one.prompt for one in wanted)]
    for warning in prompt_warnings(told, files):  # a region may say the trigger
        warn(tell, warning)
    with ExitStack() as stack:
        stack.enter_context(scheduled(base, files))
        sets = [_attached(base, one, stack, tell) for one in loaded]
        stack.enter_context(base.speaking(summed([(attached.extras, 1.0) for attached in sets]).words))
        stack.enter_context(fast_sampling(base.unet, sets))
        found = _placed(base, wanted, files, sets, stack, tell)
        stream = _stream(base, wanted, None if found is None else found.routing)
        for number, (recipe, image) in enumerate(zip(wanted, stream, strict=True)):
            yield Drawn(recipe, image, number, found)


@contextmanager
def scheduled(base: Base, files: Sequence[AnyFile]) -> Generator[None]:
    """Within, the base denoises as the adapters were trained to."""
    before = base.pipe.scheduler
    try:
        base.set_schedule(*common_schedule(files))
        yield
    finally:
        base.pipe.scheduler = before


def common_schedule(files: Sequence[AnyFile]) -> tuple[str, bool]:
    """How the adapters were trained to denoise (Base.set_schedule); without any, as the base was."""
    cards = [file.card for file in files if file.card.base_hash]
    ways = list(dict.fromkeys((card.prediction_type, card.zero_terminal_snr) for card in cards))
    if len(ways) > 1:
        raise UserInputError(
            "These adapters predict different things (prediction_type or zero_terminal_snr differ).",
            "Draw with those that agree; studio info FILE tells what each was trained for.",
        )
    return ways[0] if ways else ("auto", False)


def prompt_warnings(prompts: Sequence[str], files: Sequence[AnyFile]) -> Generator[str]:
    """A sentence for each trigger that a prompt lacks: the subject will hardly show."""
    for file in files:
        subjects = file.card.subjects
        for prompt in prompts:
            if subjects and not any(has_word(prompt, trigger) for trigger, _ in subjects):
                phrase = '" or "'.join(f"{trigger} {word}".strip() for trigger, word in subjects)
                yield f'The prompt "{prompt}" lacks the trigger "{subjects[0][0]}"; say "{phrase}" for the subject.'


def _attached(base: Base, one: Loaded, stack: ExitStack, tell: Tell) -> AdapterSet:
    attached = attach_any(base.components, one.file, base.hash, one.part)
    attached.to(base.device)
    stack.callback(attached.detach)
    attached.strength = one.strength
    if attached.warning:
        warn(tell, f"{one.path}: {attached.warning}")
    return attached


def _placed(
    base: Base,
    wanted: Sequence[Recipe],
    files: Sequence[AnyFile],
    sets: Sequence[AdapterSet],
    stack: ExitStack,
    tell: Tell,
) -> FoundRegions | None:
    """Puts the adapters into their regions; what finds them while it draws, where they are to be found."""
    first = wanted[0]
    guided = first.guidance > 1
    if first.regions and any(attached.extras.vectors for attached in sets):
        warn(tell, "Changes of biases and norms act in the whole picture, not in a region alone.")
    if not is_auto(first.regions):
        if regions := parse_regions(first.regions):
            stack.enter_context(drawing_regions(base, regions, places(regions, files, sets), first.size, guided))
        return None
    found = FoundRegions(base, [one.prompt for one in wanted], files, sets, first.size, first.steps, guided)
    for warning in found.warnings:
        warn(tell, warning)
    return found


def _stream(base: Base, wanted: Sequence[Recipe], routing: Routing | None) -> Generator[Image.Image]:
    first = wanted[0]
    yield from generate(
        base,
        [recipe.prompt for recipe in wanted],
        seeds=[recipe.seed for recipe in wanted],
        negative=first.negative,
        width=first.size[0],
        height=first.size[1],
        inference_steps=first.steps,
        guidance=first.guidance,
        scheduler=first.scheduler,
        routing=routing,
    )
