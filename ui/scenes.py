"""What the form of Create means: which subjects go together, what is wrong with it, and the job that it asks for.

Knows no Gradio, and no torch.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from pydantic import Field, ValidationError

from adapters.errors import StudioError, UserInputError
from studio import workers
from studio.paths import LIBRARY_PREFIX
from studio.queue import Submission
from studio.store import LibraryAdapter, SampleRequest, Use
from studio.store.states import GIVEN_UP
from trainers.buckets import make_buckets
from trainers.captions import has_word
from trainers.places import AUTO, parse_regions
from trainers.seeds import derive_seed
from ui.forms import Form
from ui.studio import Studio
from ui.subject import Problems

MOST = 32
"""Pictures that one press asks for, at most."""
LONGEST = 2000
"""Characters of a prompt."""
STRONGEST = 10.0
_STEP = 32
"""Sides are multiples of this: what SDXL's VAE and UNet halve."""
_WRONG = {
    "seed": "A whole number from 0 to 9223372036854775807.",
    "steps": "A whole number from 1 to 1000.",
    "guidance": "A number from 0 to 100.",
    "prompt": "Say what to draw.",
}


class Scene(Form):
    """All that the form holds, as it was filled in: numbers and texts may be wrong."""

    prompt: str = ""
    uses: list[Use] = Field(default_factory=list[Use])
    count: float | None = 4
    seed: str = Field(default_factory=lambda given: next_seed(given["id"]))
    """Of the first picture of the next press."""
    locked: bool = False
    """Whether the seed stays after a press."""
    size: str = ""
    """WIDTHxHEIGHT; the base's own where it is empty."""
    base: str = "embedded"
    """What is drawn on where no adapter says so."""
    negative: str = ""
    steps: float | None = 25
    guidance: float | None = 5
    scheduler: str = "euler"
    places: Literal["whole", "found", "drawn"] = "whole"
    regions: list[str] = Field(default_factory=list[str])
    regions_told: str = ""
    """By which page, and in which turn of it (ui.components.regions)."""
    job: str = ""
    """The job whose pictures are beside the form."""


def next_seed(seed: str) -> str:
    """The one that follows, by chance as far as anybody sees; pressed twice, a form asks for the same pictures."""
    return str(derive_seed("scene", seed) % 2**32)


# --- subjects -----------------------------------------------------------------------------------------------


def known(studio: Studio, adapter: str) -> LibraryAdapter | None:
    """The library's entry of lib:ID or of an id; None where it is gone or in the trash."""
    try:
        entry = studio.library.get_adapter(adapter)
    except StudioError:
        return None
    whole = entry.id == adapter.removeprefix(LIBRARY_PREFIX)
    return entry if whole and entry.trashed_at is None else None


def phrase(studio: Studio, entry: LibraryAdapter) -> str:
    """How prompts call it: "sks dog"; a fused one by all that it was made of."""
    own = f"{entry.trigger} {entry.class_word}".strip()
    return own or " and ".join(filter(None, (phrase(studio, one) for one in studio.library.parents(entry.id))))


def used(studio: Studio, scene: Scene) -> list[LibraryAdapter]:
    return [entry for use in scene.uses if (entry := known(studio, use.adapter))]


def base_of(studio: Studio, scene: Scene) -> str:
    """The base that the adapters were made on, else the chosen one."""
    return next((entry.base for entry in used(studio, scene) if entry.base), scene.base)


def against(studio: Studio, scene: Scene, entry: LibraryAdapter) -> str:
    """Why an adapter cannot be used with those that are; "" where it can."""
    if entry.base and entry.base not in studio.bases:
        return f"made on {entry.base}, which is not offered here"
    for other in used(studio, scene):
        if not _same_base(entry, other):
            return f"made on another base than {other.name}"
    return ""


def _same_base(one: LibraryAdapter, other: LibraryAdapter) -> bool:
    if one.base_hash and other.base_hash:
        return one.base_hash == other.base_hash
    return not one.base or not other.base or one.base == other.base


def toggle(studio: Studio, scene: Scene, id: str) -> str:
    """Uses an adapter and says its subject in the prompt, or uses it no more; why it cannot be, if so."""
    left = [use for use in scene.uses if use.adapter != LIBRARY_PREFIX + id]
    if len(left) < len(scene.uses):
        scene.uses = left
        return ""
    entry = known(studio, id)
    if entry is None:
        return "It is not in the library any more."
    if reason := against(studio, scene, entry):
        return f"{entry.name} is {reason}."
    said = [one.trigger for one in used(studio, scene) if one.trigger and has_word(scene.prompt, one.trigger)]
    own = phrase(studio, entry)
    if not has_word(scene.prompt, entry.trigger or own):
        scene.prompt = (" and " if said else " ").join(filter(None, (scene.prompt.rstrip(), own)))
    return add(scene, entry.id)


def add(scene: Scene, id: str, strength: float = 1.0) -> str:
    """Uses an adapter; why that is not its strength, if so."""
    scene.uses.append(Use(adapter=LIBRARY_PREFIX + id, strength=1.0))
    return set_strength(scene, LIBRARY_PREFIX + id, str(strength))


def set_strength(scene: Scene, adapter: str, text: str) -> str:
    """Why the text is no strength, if so; it then stays as it was."""
    try:
        strength = float(text)
    except ValueError:
        strength = float("nan")
    if not abs(strength) <= STRONGEST:
        return f"A strength is a number from -{STRONGEST:g} to {STRONGEST:g}."
    scene.uses = [
        use.model_copy(update={"strength": strength}) if use.adapter == adapter else use for use in scene.uses
    ]
    return ""


def unsaid(studio: Studio, scene: Scene) -> str:
    """A sentence on subjects that are used and that no prompt speaks of; "" where all are said."""
    texts = " ".join([scene.prompt, *(scene.regions if scene.places == "drawn" else ())])
    names = [
        f"“{entry.trigger}” for {entry.name}"
        for entry in used(studio, scene)
        if entry.trigger and not has_word(texts, entry.trigger)
    ]
    return f"The prompt does not say {' or '.join(names)}: it will hardly show." if names and scene.prompt else ""


# --- sizes --------------------------------------------------------------------------------------------------


def native(base: str) -> int:
    """Side of the base's own square in pixels, as far as it is known without loading it."""
    return 128 if base == "embedded" else 1024


def sizes(base: str) -> list[str]:
    """Those that the base has learnt, its own first."""
    side = native(base)
    found = [(one.width, one.height) for one in make_buckets(side, max(_STEP, side // 16), 2.0)]
    found.sort(key=lambda size: (size[0] != size[1], -size[0] / size[1]))
    return [f"{width}x{height}" for width, height in found]


def shape(studio: Studio, scene: Scene) -> tuple[int, int]:
    """Width and height in pixels; the base's own where the text is no size."""
    side = native(base_of(studio, scene))
    return _size(scene.size, side) or (side, side)


def _size(text: str, native: int) -> tuple[int, int] | None:
    match = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text)
    if match is None:
        return None
    sides = int(match[1]), int(match[2])
    good = all(side % _STEP == 0 and 2 * _STEP <= side <= 2 * native for side in sides)
    return sides if good else None


# --- asking -------------------------------------------------------------------------------------------------


def request(studio: Studio, scene: Scene) -> tuple[SampleRequest | None, Problems]:
    """What the form asks for; or None, and what is wrong by field."""
    found = Problems()
    count, base = float(scene.count or 0), base_of(studio, scene)
    if not (count.is_integer() and 1 <= count <= MOST):
        found.fields["count"], count = f"A whole number from 1 to {MOST}.", 1
    if base not in studio.bases:
        found.fields["base"] = f"{base} is not offered here."
    if scene.size and _size(scene.size, native(base)) is None:
        limits = f"from {2 * _STEP} to {2 * native(base)}"
        found.fields["size"] = f"Width x height, such as {sizes(base)[0]}: multiples of {_STEP}, {limits}."
    if problem := _wrong_uses(studio, scene):
        found.fields["uses"] = problem
    if problem := _wrong_regions(studio, scene):
        found.fields["regions"] = problem
    asked = _validated(scene, int(count), base, _size(scene.size, native(base)), found)
    return (None if found.fields else asked), found


def _validated(
    scene: Scene, count: int, base: str, size: tuple[int, int] | None, found: Problems
) -> SampleRequest | None:
    prompt, seed = scene.prompt.strip(), scene.seed.strip()
    first = int(seed) if seed.isdecimal() and len(seed) < 30 else -1
    if not prompt:
        found.fields["prompt"] = _WRONG["prompt"]
    regions = {"whole": (), "found": (AUTO,), "drawn": tuple(scene.regions)}[scene.places]
    drawings = [{"prompt": prompt, "seed": first + number, "uses": scene.uses} for number in range(count)]
    whole: dict[str, Any] = {
        "base": base, "drawings": drawings, "negative": scene.negative.strip(), "size": size, "steps": scene.steps,
        "guidance": scene.guidance, "scheduler": scene.scheduler, "regions": regions,
    }  # fmt: skip
    try:
        return SampleRequest.model_validate(whole)
    except ValidationError as error:
        names = {part for one in error.errors() for part in one["loc"] if part in _WRONG}
        found.fields.update({str(name): _WRONG[str(name)] for name in names} or {"": error.errors()[0]["msg"]})
        return None


def _wrong_uses(studio: Studio, scene: Scene) -> str:
    entries = used(studio, scene)
    if len(entries) < len(scene.uses):
        return "An adapter is not in the library any more: remove it."
    reasons = [f"{entry.name} is {reason}." for entry in entries if (reason := against(studio, scene, entry))]
    return " ".join(reasons)


def _wrong_regions(studio: Studio, scene: Scene) -> str:
    if scene.places == "found":
        entries = used(studio, scene)
        if len(entries) < 2 and not any(entry.parents for entry in entries):
            return "Places are found for two subjects or more: use another one, or choose the whole picture."
        return "Places are found at the first of several steps: take 10 or more." if (scene.steps or 0) < 2 else ""
    if scene.places == "whole":
        return ""
    if not scene.regions:
        return "Draw at least one region, or choose the whole picture."
    for number, text in enumerate(scene.regions, 1):
        if not text.partition(":")[2].strip():
            return f"Say what is in region {number}."
    try:
        parse_regions(scene.regions)
    except UserInputError as error:
        return str(error)
    return ""


def start(studio: Studio, scene: Scene) -> Problems:
    """Asks for the pictures: the scene then has the job's id, and the next seed unless that is locked."""
    asked, problems = request(studio, scene)
    if asked is None:
        return problems
    try:
        scene.job = draw(studio, asked)
    except StudioError as error:
        return Problems({"": str(error)})
    if not scene.locked:
        scene.seed = next_seed(scene.seed)
    return problems


def draw(studio: Studio, asked: SampleRequest) -> str:
    """The id of the job: the same pictures asked for again are the same job, which is tried again where it failed."""
    key = f"sample:{hashlib.sha256(asked.model_dump_json().encode()).hexdigest()}"
    id = studio.queue.submit(Submission(request=asked, title=asked.drawings[0].prompt[:80], key=key))
    state = studio.queue.get_job(id).state
    if state in GIVEN_UP:
        studio.queue.retry(id)
    elif state == "paused":
        studio.queue.send(id, "resume")
    workers.ensure(studio.queue)
    return id
