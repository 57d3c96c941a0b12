"""`studio sample`: pictures from a base with any adapters at any strength, each with its recipe, and a grid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import track

from adapters.adapter_set import AdapterSet
from adapters.digest import file_sha256
from adapters.errors import MissingError, UnknownNameError, UserInputError
from adapters.extras import summed
from adapters.formats.open import AnyFile, attach_any, open_adapter
from studio import __version__
from studio.auto_regions import FoundRegions, is_auto
from studio.paths import LIBRARY_PREFIX, next_free, slug
from studio.recipe import AdapterUse, Recipe, save_png
from studio.regions import drawing_regions, parse_regions, places
from trainers.bases import pick_device, pick_dtype
from trainers.captions import has_word
from trainers.fast.sampling import fast_sampling
from trainers.result import ADAPTER_NAME
from trainers.samples import grid
from trainers.sdxl import SCHEDULERS, Base, generate, load_base

PICTURES = Path("samples")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Request:
    """What to draw: `count` pictures a prompt, with seeds from `seed` on; `size` in pixels (width, height)."""

    adapters: Sequence[Path]
    prompts: Sequence[str]
    strengths: Sequence[float] = (1.0,)
    parts: Sequence[str] = ()
    """Which layers of the adapters are used: none named: all; one: for each; else one an adapter."""
    count: int = 4
    seed: int = 0
    size: tuple[int, int] | None = None
    negative: str = ""
    steps: int = 25
    guidance: float = 5.0
    scheduler: str = "euler"
    base: str | None = None
    out: Path | None = None
    regions: Sequence[str] = ()
    """As `--region` takes them: a place and a prompt each, or "auto" alone."""


@dataclass(frozen=True)
class _Loaded:
    path: Path
    file: AnyFile
    strength: float
    part: str | None

    def use(self) -> AdapterUse:
        return AdapterUse(file=str(self.path), sha256=file_sha256(self.path), strength=self.strength, part=self.part)


def parse_size(text: str) -> tuple[int, int]:
    """1024x768 → (1024, 768)."""
    match = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", text.strip())
    if match is None:
        raise UserInputError(f"{text!r} is no size.", "Write it as width x height: --size 1024x768.")
    return int(match[1]), int(match[2])


def adapter_path(given: Path) -> Path:
    """The file, a run's folder's adapter, or the library's: lib:ID, the id cut short as long as it tells which."""
    if str(given).startswith(LIBRARY_PREFIX) and not given.exists():
        from studio.library import Library

        return Library().path_of(str(given))
    if not given.is_dir():
        return given
    path = given / ADAPTER_NAME
    if not path.exists():
        raise MissingError(f"The folder {given} holds no {ADAPTER_NAME}.", "Give an adapter file or a finished run.")
    return path


def sample(request: Request, console: Console) -> Path:
    """Draw everything; returns the path of the grid."""
    if request.scheduler not in SCHEDULERS:
        raise UnknownNameError("scheduler", request.scheduler, list(SCHEDULERS))
    loaded = _load(request)
    files = [one.file for one in loaded]
    regions = [] if is_auto(request.regions) else parse_regions(request.regions)
    name, schedule = request.base or common_base(files), common_schedule(files)
    told = [" ".join([prompt, *request.regions]) for prompt in request.prompts]  # a region may say the trigger
    for warning in prompt_warnings(told, files):
        warn(console, warning)
    device = pick_device(None)
    base = load_base(name, device=device, dtype=pick_dtype("auto", device))
    base.set_schedule(*schedule)
    out = request.out or next_free(PICTURES, slug(request.prompts[0]))
    sets: list[AdapterSet] = []
    with ExitStack() as stack:
        for one in loaded:
            attached = attach_any(base.components, one.file, base.hash, one.part)
            attached.to(base.device)
            stack.callback(attached.detach)
            attached.strength = one.strength
            sets.append(attached)
            if attached.warning:
                warn(console, f"{one.path}: {attached.warning}")
        stack.enter_context(base.speaking(summed([(attached.extras, 1.0) for attached in sets]).words))
        stack.enter_context(fast_sampling(base.unet, sets))
        wanted = recipes(request, base, [one.use() for one in loaded])
        size, guided = wanted[0].size, request.guidance > 1
        if request.regions and any(attached.extras.vectors for attached in sets):
            warn(console, "Changes of biases and norms act in the whole picture, not in a region alone.")
        if regions:
            stack.enter_context(drawing_regions(base, regions, places(regions, files, sets), size, guided))
        found = None
        if is_auto(request.regions):
            found = FoundRegions(base, [one.prompt for one in wanted], files, sets, size, request.steps, guided)
            for warning in found.warnings:
                warn(console, warning)
        return _draw(request, base, wanted, out, console, found)


def warn(console: Console, text: str) -> None:
    """A line that the user may want to act on."""
    console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _load(request: Request) -> list[_Loaded]:
    paths = [adapter_path(given) for given in request.adapters]
    strengths = for_each("strength", list(request.strengths) or [1.0], len(paths))
    parts = for_each("part", list[str | None](request.parts) or [None], len(paths))
    return [
        _Loaded(path, open_adapter(path), strength, part)
        for path, strength, part in zip(paths, strengths, parts, strict=True)
    ]


def for_each(option: str, given: list[Value], count: int) -> list[Value]:
    """An option given once for all adapters, or once for each."""
    values = given * count if len(given) == 1 else given
    if len(values) != count:
        raise UserInputError(
            f"There are {count} adapters and {len(given)} {option}s.",
            f"Give --{option} once for all, or once for each adapter in their order.",
        )
    return values


def common_base(files: Sequence[AnyFile]) -> str:
    """The base that all these were made on, or the embedded one. Raises UserInputError where they differ."""
    bases = list(dict.fromkeys(file.card.base for file in files if file.card.base))
    if len(bases) > 1:
        raise UserInputError(
            f"These adapters were made on different bases: {', '.join(bases)}.", "Choose one with --base."
        )
    return bases[0] if bases else "embedded"


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


def prompt_warnings(prompts: Sequence[str], files: Sequence[AnyFile]) -> Iterator[str]:
    """A sentence for each trigger that a prompt lacks: the subject will hardly show."""
    for file in files:
        subjects = file.card.subjects
        for prompt in prompts:
            if subjects and not any(has_word(prompt, trigger) for trigger, _ in subjects):
                phrase = '" or "'.join(f"{trigger} {word}".strip() for trigger, word in subjects)
                yield f'The prompt "{prompt}" lacks the trigger "{subjects[0][0]}"; say "{phrase}" for the subject.'


def recipes(request: Request, base: Base, uses: Sequence[AdapterUse]) -> list[Recipe]:
    """One recipe a picture: prompt after prompt, the same seeds for each."""
    size = request.size or (base.native_resolution, base.native_resolution)
    return [
        Recipe(
            prompt=prompt,
            negative=request.negative,
            seed=request.seed + number,
            size=size,
            steps=request.steps,
            guidance=request.guidance,
            scheduler=request.scheduler,
            adapters=tuple(uses),
            base=base.name,
            base_hash=base.hash,
            version=__version__,
            regions=tuple(request.regions),
        )
        for prompt in request.prompts
        for number in range(request.count)
    ]


def _draw(
    request: Request, base: Base, wanted: Sequence[Recipe], out: Path, console: Console, found: FoundRegions | None
) -> Path:
    pictures: list[Image.Image] = []
    stream = generate(
        base,
        [recipe.prompt for recipe in wanted],
        seeds=[recipe.seed for recipe in wanted],
        negative=request.negative,
        width=wanted[0].size[0],
        height=wanted[0].size[1],
        inference_steps=request.steps,
        guidance=request.guidance,
        scheduler=request.scheduler,
        routing=None if found is None else found.routing,
    )
    progress = track(
        stream, "drawing", total=len(wanted), console=console, transient=True, disable=not console.is_terminal
    )
    for recipe, picture in zip(wanted, progress, strict=True):
        path = out / f"{slug(recipe.prompt)}-{recipe.seed}.png"
        save_png(path, picture, (recipe,))
        pictures.append(picture)
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
        if found is not None:
            found.save(path, len(pictures) - 1, picture.size)
            for subject in found.unplaced(len(pictures) - 1):
                warn(console, f"No place was found for {subject}: the base may draw too few things. Another seed may.")
    columns = request.count if len(request.prompts) > 1 else math.ceil(math.sqrt(request.count))
    if found is not None:
        console.print(found.legend, markup=False, highlight=False, soft_wrap=True)
    whole = out / "grid.png"
    save_png(whole, grid(pictures, columns), tuple(wanted))
    return whole
