"""What Compare asks for: checkpoints of a run or adapters of the library, by prompts and strengths, from one seed.

Knows no Gradio, and no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.errors import StudioError
from studio.paths import LIBRARY_PREFIX
from studio.store import Job, LibraryAdapter, SampleRequest
from trainers.captions import filled
from ui.scenes import LONGEST, STRONGEST, draw
from ui.studio import Studio
from ui.subject import Problems

MOST = 120
"""Pictures of one comparison."""
PROMPT = "a photo of a {trigger} {class}"
_ADAPTERS = 12
_WRONG = {"seed": "A whole number from 0 to 9223372036854775807.", "steps": "A whole number from 1 to 1000."}


@dataclass(frozen=True)
class Variant:
    """A row of the grid. `key` is what the browser calls it, `adapter` what a job does."""

    key: str
    label: str
    adapter: str
    base: str
    trigger: str = ""
    class_word: str = ""

    def prompt(self, template: str) -> str:
        """With its own words where {trigger} and {class} stand."""
        return filled(template, self.trigger, self.class_word)

    def template(self, prompt: str) -> str:
        """`prompt` backwards: {trigger} and {class} where its own words stand."""
        for word, mark in ((self.trigger, "{trigger}"), (self.class_word, "{class}")):
            prompt = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", mark, prompt) if word else prompt
        return prompt


@dataclass(frozen=True)
class Asked:
    """The form as it was filled in: texts may be wrong."""

    chosen: tuple[str, ...]
    prompts: str = PROMPT
    strengths: str = "1"
    seed: str = "1"
    steps: float | None = 25


@dataclass(frozen=True)
class Grid:
    """A job's pictures as rows and columns; `numbers` go on row by row."""

    rows: list[str]
    """Adapters as the job names them."""
    columns: list[str]
    """Prompts, as the first row has them, and strengths where there are several."""

    def number(self, row: int, column: int) -> int:
        return row * len(self.columns) + column


@dataclass
class Source:
    """Where the rows come from."""

    variants: list[Variant] = field(default_factory=list[Variant])
    prompts: str = PROMPT
    job: Job | None = None
    trouble: str = ""


def source(studio: Studio, job: str, adapters: str) -> Source:
    """The rows that an address offers."""
    try:
        if job:
            return _of_run(studio, studio.queue.get_job(job))
        ids = [id for id in adapters.split(",") if id][:_ADAPTERS]
        return Source([_of_entry(entry) for entry in map(studio.library.get_adapter, ids) if entry.trashed_at is None])
    except StudioError as error:
        return Source(trouble=str(error))


def _of_entry(entry: LibraryAdapter) -> Variant:
    return Variant(
        entry.id, entry.name, f"{LIBRARY_PREFIX}{entry.id}", entry.base or "embedded", entry.trigger, entry.class_word
    )


def _of_run(studio: Studio, job: Job) -> Source:
    if not job.config:
        return Source(trouble="That job trains nothing: there are no checkpoints of it.")
    captions = job.config["data"]["captions"]
    words = {"base": job.base, "trigger": str(captions["trigger"]), "class_word": str(captions["class_word"])}
    ended = job.state == "done"
    steps = {step_of(path): path for path in sorted((job.run / "adapters").glob("step-*.safetensors"))}
    found = [
        Variant(path.stem, f"step {step}", str(path), **words)
        for step, path in steps.items()
        if not (ended and step == job.progress.step)
    ]
    if ended:
        own = [entry for entry in studio.library.list_adapters() if entry.job == job.id]
        last = f"{LIBRARY_PREFIX}{own[0].id}" if own else str(job.run / "adapter.safetensors")
        found.append(Variant("final", f"step {job.progress.step}, the last", last, **words))
    given = job.config["sample"]["prompts"] or [captions["template"]]
    return Source(found, "\n".join(map(str, given)), job)


def step_of(path: Path) -> int:
    """The step that a file's name tells."""
    return int(path.stem.removeprefix("step-"))


def request(studio: Studio, offered: Source, asked: Asked) -> tuple[SampleRequest | None, Problems]:
    """The pictures row by row; or None, and what is wrong by field."""
    found = Problems()
    rows = [one for one in offered.variants if one.key in asked.chosen]
    prompts = [line.strip() for line in asked.prompts.splitlines() if line.strip()]
    strengths = _strengths(asked.strengths)
    if not rows:
        found.fields["rows"] = "Choose at least one."
    elif len({one.base for one in rows}) > 1:
        found.fields["rows"] = "These were made on different bases: choose those of one."
    elif offered.job is None and rows[0].base not in studio.bases:
        found.fields["rows"] = f"{rows[0].base} is not offered here (studio ui --base)."
    if not prompts or max(map(len, prompts)) > LONGEST:
        found.fields["prompts"] = f"One prompt a line, of 1 to {LONGEST} characters."
    if not strengths:
        found.fields["strengths"] = f"Numbers from -{STRONGEST:g} to {STRONGEST:g}, such as 0.6, 0.8, 1."
    if (count := len(rows) * len(prompts) * len(strengths)) > MOST:
        found.fields[""] = f"That would be {count} pictures; {MOST} are the most."
    made = _validated(rows, prompts, strengths, asked, found)
    return (None if found.fields else made), found


def _strengths(text: str) -> list[float]:
    """The numbers of a list; empty where one of them is none."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        return []
    return found if all(math.isfinite(one) and abs(one) <= STRONGEST for one in found) else []


def _validated(
    rows: list[Variant], prompts: list[str], strengths: list[float], asked: Asked, found: Problems
) -> SampleRequest | None:
    seed = asked.seed.strip()
    number = int(seed) if seed.isdecimal() and len(seed) < 30 else -1
    drawings = [
        {"prompt": row.prompt(prompt), "seed": number, "uses": [{"adapter": row.adapter, "strength": strength}]}
        for row in rows
        for prompt in prompts
        for strength in strengths
    ]
    base = rows[0].base if rows else ""
    whole: dict[str, Any] = {"base": base, "drawings": drawings, "steps": asked.steps, "scored": True}
    try:
        return SampleRequest.model_validate(whole) if drawings and not found.fields else _only_numbers(number, asked)
    except ValidationError as error:
        names = {part for one in error.errors() for part in one["loc"] if part in _WRONG}
        found.fields.update({str(name): _WRONG[str(name)] for name in names} or {"": error.errors()[0]["msg"]})
        return None


def _only_numbers(seed: int, asked: Asked) -> SampleRequest:
    """Tells what is wrong with the numbers where something else is wrong as well."""
    whole: dict[str, Any] = {"base": "", "drawings": [{"prompt": "", "seed": seed}], "steps": asked.steps}
    return SampleRequest.model_validate(whole)


def start(studio: Studio, offered: Source, asked: Asked) -> tuple[str, Problems]:
    """The job that draws it, the same for the same grid; or "", and what is wrong."""
    made, problems = request(studio, offered, asked)
    if made is None:
        return "", problems
    try:
        return draw(studio, made), problems
    except StudioError as error:
        return "", Problems({"": str(error)})


def grid(asked: SampleRequest) -> Grid | None:
    """The rows and columns of pictures that were asked for here; None where they are no grid."""
    if not all(len(one.uses) == 1 for one in asked.drawings):
        return None
    rows = list(dict.fromkeys(one.uses[0].adapter for one in asked.drawings))
    width = len(asked.drawings) // len(rows)
    expected = [row for row in rows for _ in range(width)]
    if [one.uses[0].adapter for one in asked.drawings] != expected:
        return None
    first = asked.drawings[:width]
    several = len({one.uses[0].strength for one in first}) > 1
    heads = [in_common([one.prompt for one in asked.drawings[column::width]]) for column in range(width)]
    strengths = [f", × {one.uses[0].strength:g}" if several else "" for one in first]
    return Grid(rows, [head + strength for head, strength in zip(heads, strengths, strict=True)])


def in_common(prompts: Sequence[str]) -> str:
    """The words that all begin and end with; "…" for what each row has of its own."""
    lines = [prompt.split(" ") for prompt in prompts]
    begin = _begin(lines)
    rests = [line[len(begin) :] for line in lines]
    if not any(rests):
        return prompts[0]
    end = _begin([rest[::-1] for rest in rests])[::-1]
    return " ".join([*begin, "…", *end])


def _begin(lines: Sequence[Sequence[str]]) -> list[str]:
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*lines, strict=False))]


def prompts(offered: Source, asked: SampleRequest | None) -> str:
    """A line a prompt, as it can have been written for these pictures; without any, what the source offers."""
    rows = {one.adapter: one for one in offered.variants}
    mine = [one for one in asked.drawings if one.uses[0].adapter in rows] if asked is not None else []
    if asked is None or len(mine) < len(asked.drawings):
        return offered.prompts
    first = rows[mine[0].uses[0].adapter]
    literal = list(dict.fromkeys(one.prompt for one in mine if rows[one.uses[0].adapter] == first))
    templates = [first.template(prompt) for prompt in literal]
    drawn = {(one.uses[0].adapter, one.prompt) for one in mine}
    again = {(row, rows[row].prompt(line)) for row, _ in drawn for line in templates}
    return "\n".join(templates if again == drawn else literal)


def labels(studio: Studio, shown: Grid) -> list[str]:
    """What the rows are called: the library's names; beside checkpoints of a run, the steps."""
    checkpoints = any(not row.startswith(LIBRARY_PREFIX) for row in shown.rows)
    return [_label(studio, row, checkpoints) for row in shown.rows]


def _label(studio: Studio, adapter: str, beside_checkpoints: bool) -> str:
    if not adapter.startswith(LIBRARY_PREFIX):
        stem = Path(adapter).stem
        return f"step {step_of(Path(adapter))}" if stem.startswith("step-") else "the last step"
    try:
        entry = studio.library.get_adapter(adapter)
    except StudioError:
        return "not in the library any more"
    return "the last step" if beside_checkpoints and entry.job is not None else entry.name


def keep(studio: Studio, drawn: Job, row: int) -> str:
    """The id in the library of what a row was drawn with; a checkpoint is taken into it first."""
    shown = grid(drawn.request) if isinstance(drawn.request, SampleRequest) else None
    if shown is None or not 0 <= row < len(shown.rows):
        raise StudioError("There is no such row.", "Load the page again.")
    adapter = shown.rows[row]
    if adapter.startswith(LIBRARY_PREFIX):
        return studio.library.get_adapter(adapter).id
    trained = next((job for job in studio.queue.list_jobs(kind="train") if Path(adapter).is_relative_to(job.run)), None)
    name = f"{trained.title}, {labels(studio, shown)[row]}" if trained is not None else None
    return studio.clerk.ask("take", home=str(studio.home), path=adapter, name=name)
