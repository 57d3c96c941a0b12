"""A run as a page shows it."""

from __future__ import annotations

from collections.abc import Sequence

from studio.job_texts import prompts as prompts_of
from studio.store import Ask, Job, LibraryAdapter
from studio.store.states import ACTIVE, WAITING
from ui.components import words
from ui.components.markup import button, esc, message
from ui.course import Course
from ui.media import references

_LATEST = 8


def head(job: Job) -> str:
    """Name, state, bar, time left and figures."""
    share, left = words.share(job), words.left(job)
    bar = f'<progress max="1" value="{share or 0:.4f}" aria-label="progress"></progress>'
    shown = bar if job.state in ACTIVE or share is not None else ""
    percent = f"{share:.0%}" if share is not None and job.state != "done" else ""
    facts = "".join(f"<div><dt>{name}</dt><dd>{esc(value)}</dd></div>" for name, value in words.figures(job))
    phase = " · ".join(filter(None, (words.stage(job), percent, left)))
    return (
        f'<h1 id="run-title">{esc(job.title)}</h1><p class="s-phase" role="status" id="phase">{esc(phase)}</p>{shown}'
        + (f'<dl class="s-figures">{facts}</dl>' if facts else "")
    )


_TOLD = {
    "pause": "It saves and pauses after this step.",
    "cancel": "It stops after this step. What was saved is kept.",
    "save": "It saves after this step.",
    "sample": "It draws after this step.",
}


def actions(job: Job, asked: Sequence[Ask] = (), entry: LibraryAdapter | None = None) -> str:
    """What can be asked of it in its state, with the `entry` that it made, and what it has not done yet."""
    found: list[str] = []
    if entry is not None and entry.trashed_at is None:
        found.append(f'<a class="s-button s-primary" href="/create?adapters={entry.id}">Create with it</a>')
    if job.state == "done":
        found.append(f'<a class="s-button" id="download" href="/media/job/{job.id}/adapter" download>Download</a>')
        found.append(f'<a class="s-button" href="/compare?job={job.id}">Compare checkpoints</a>')
    if job.state in (*ACTIVE, *WAITING):
        found.append(button("Pause", "pause"))
    if job.state == "running":
        found += [button("Save now", "save"), button("Draw now", "sample")]
    if job.state == "paused":
        found.append(button("Resume", "resume", kind="s-primary"))
    if job.state in (*ACTIVE, *WAITING, "paused"):
        found.append(button("Stop", "cancel"))
    if job.state == "cancelled":
        found.append(button("Go on after all", "retry", kind="s-primary"))
    found.append(f'<a class="s-button" href="/new?copy={job.id}">Copy settings to a new run</a>')
    told = message(" ".join(_TOLD[ask] for ask in asked if ask in _TOLD), "good", elem_id="run-asked")
    return f'<div class="s-bar">{"".join(found)}</div>{told}'


def failure(job: Job) -> str:
    """What went wrong, and a button that helps."""
    found = words.failure(job)
    if found is None:
        return ""
    fix = "The button below begins it again with settings that take less." if found.remedy else found.fix
    helps = button("Try again", "retry", kind="" if found.remedy else "s-primary")
    if found.remedy:
        words_of = found.remedy.replace("-", " ")
        helps = button(f"Try again with {words_of}", "remedy", kind="s-primary", preset=found.remedy) + helps
    return (
        '<section class="s-card s-failure" role="alert" aria-labelledby="failure-title">'
        f'<h2 id="failure-title">It did not work out</h2><p>{esc(found.what)}</p>'
        f'<p class="s-quiet">{esc(fix)}</p><div class="s-bar">{helps}</div></section>'
    )


def notes(course: Course) -> str:
    return message("\n".join(course.notes), "note", elem_id="run-notes") if course.notes else ""


def samples(job: Job, course: Course) -> str:
    """A row a prompt, a column a step, the newest last, after the picture that it learns from."""
    prompts = prompts_of(job.config)
    shown = course.samples[-_LATEST:]
    reference = (
        f'<figure><img src="/media/job/{job.id}/reference/0" alt="One of its pictures">'
        "<figcaption>what it learns from</figcaption></figure>"
        if references(job)
        else ""
    )
    if not shown and not reference:
        return ""
    rows = "".join(_row(job, shown, prompt, place, len(prompts), reference) for place, prompt in enumerate(prompts))
    return f'<section aria-labelledby="samples-title"><h2 id="samples-title">What it draws</h2>{rows}</section>'


def _row(job: Job, shown: list[tuple[int, str]], prompt: str, place: int, prompts: int, reference: str) -> str:
    count = int(job.config["sample"]["count"]) or 1
    # A file holds all prompts of its step, one under the other: each row shows its own part of it.
    cut = f"aspect-ratio: {count}; object-position: 0 {100 * place / (prompts - 1):.3f}%" if prompts > 1 else ""
    wide = " s-wide" if prompts > 1 and count > 1 else ""
    cells = "".join(
        f'<figure class="{wide}"><a href="/media/job/{job.id}/sample/{esc(name)}" target="_blank">'
        f'<img src="/media/job/{job.id}/sample/{esc(name)}" style="{cut}" alt="{esc(prompt)}, step {step}"></a>'
        f"<figcaption>step {step}</figcaption></figure>"
        for step, name in shown
    )
    waiting = '<figure><div class="s-nothing">nothing drawn yet</div></figure>' if not cells else ""
    return f'<h3>{esc(prompt)}</h3><div class="s-samples" tabindex="0">{reference}{cells}{waiting}</div>'
