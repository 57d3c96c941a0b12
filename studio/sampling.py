"""`studio sample`: pictures from a base with any adapters at any strength, each with its recipe, and a grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import track

from adapters.errors import MissingError, UnknownNameError, UserInputError
from adapters.formats.open import AnyFile, open_adapter
from studio.drawing import Loaded, Tell, common_schedule, drawn, recipes
from studio.paths import LIBRARY_PREFIX, next_free, slug
from studio.recipe import save_png
from trainers.bases import pick_device, pick_dtype
from trainers.events import Event, Note, Progress
from trainers.places import is_auto, parse_regions
from trainers.result import ADAPTER_NAME
from trainers.samples import grid
from trainers.schedulers import SCHEDULERS
from trainers.sdxl import Base, load_base

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
    name = request.base or common_base([one.file for one in loaded])
    common_schedule([one.file for one in loaded])  # what cannot go together is said before a base is loaded
    if not is_auto(request.regions):
        parse_regions(request.regions)
    device = pick_device(None)
    base = load_base(name, device=device, dtype=pick_dtype("auto", device))
    return _draw(request, base, loaded, request.out or next_free(PICTURES, slug(request.prompts[0])), console)


def warn(console: Console, text: str) -> None:
    """A line that the user may want to act on."""
    console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def teller(console: Console) -> Tell:
    """Shows on that console what is worth a line: warnings, and how far it is."""

    def tell(event: Event) -> None:
        match event:
            case Note(level="warning"):
                warn(console, event.text)
            case Progress(stage="prompts"):
                console.print(f"Looked at {event.done} of {event.total} sets of prompts.", highlight=False)
            case _:
                pass

    return tell


def _load(request: Request) -> list[Loaded]:
    paths = [adapter_path(given) for given in request.adapters]
    strengths = for_each("strength", list(request.strengths) or [1.0], len(paths))
    parts = for_each("part", list[str | None](request.parts) or [None], len(paths))
    return [
        Loaded(path, open_adapter(path), strength, part)
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


def _draw(request: Request, base: Base, loaded: Sequence[Loaded], out: Path, console: Console) -> Path:
    asked = [(prompt, request.seed + number) for prompt in request.prompts for number in range(request.count)]
    wanted, tell = recipes(request, base, loaded, asked), teller(console)
    pictures: list[Image.Image] = []
    found = None
    with closing(drawn(base, loaded, wanted, tell)) as stream:
        for picture in track(
            stream, "drawing", total=len(wanted), console=console, transient=True, disable=not console.is_terminal
        ):
            path = out / f"{slug(picture.recipe.prompt)}-{picture.recipe.seed}.png"
            picture.save(path, tell)
            pictures.append(picture.image)
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
            found = picture.found
    if found is not None:
        console.print(found.legend, markup=False, highlight=False, soft_wrap=True)
    whole = out / "grid.png"
    columns = request.count if len(request.prompts) > 1 else math.ceil(math.sqrt(request.count))
    save_png(whole, grid(pictures, columns), tuple(wanted))
    return whole
