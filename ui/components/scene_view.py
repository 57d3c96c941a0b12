"""Create's lists: the subjects to choose from, those that are used, the pictures, and what was drawn before."""

from __future__ import annotations

from collections.abc import Sequence

from studio.paths import LIBRARY_PREFIX
from studio.store import Job, SampleRequest, Use
from studio.store.states import ACTIVE, GIVEN_UP, WAITING
from ui import media, scenes
from ui.components import library_view, words
from ui.components.markup import button, esc, message
from ui.scenes import Scene
from ui.studio import Studio

_CHIPS = 60
_SHOWN = 64
"""Pictures of a job that are laid out."""
_FIRST = 4
"""Pictures of a job in the history."""
_NO_SUBJECTS = (
    '<p class="s-hint">No subjects yet: <a href="/new">teach one</a>, or draw with the base alone.</p>'
)  # fmt: skip
_NO_PICTURES = '<p class="s-empty s-quiet" id="no-pictures">The pictures come here.</p>'
_NO_HISTORY = '<p class="s-quiet">What you draw is kept here.</p>'

STRENGTHS = """
element.addEventListener('input', event => {
  if (event.target.dataset.field !== 'strength') return;
  event.target.closest('li').querySelectorAll('[data-field=strength]').forEach(field => {
    if (field !== event.target) field.value = event.target.value;
  });
});
"""
"""A slider and its number say the same while one of them is moved."""


def chips_markup(studio: Studio, scene: Scene) -> str:
    """A button a subject of the library; one that cannot be used with the others says why."""
    entries = studio.library.list_adapters(limit=_CHIPS)
    if not entries:
        return _NO_SUBJECTS
    in_use = {use.adapter for use in scene.uses}
    chips: list[str] = []
    for entry in entries:
        pressed = LIBRARY_PREFIX + entry.id in in_use
        reason = "" if pressed else scenes.against(studio, scene, entry)
        said = scenes.phrase(studio, entry)
        more = reason or (said if said != entry.name else "")
        state = f' aria-pressed="{str(pressed).lower()}"' + (' aria-disabled="true"' if reason else "")
        quiet = f' <span class="s-quiet">{esc(more)}</span>' if more else ""
        face = library_view.picture(entry) if entry.thumbnail is not None else ""
        chips.append(
            f'<button type="button" class="s-subject" data-action="use" data-adapter="{entry.id}"'
            f' data-key="chip-{entry.id}"{state}>{face}{esc(entry.name)}{quiet}</button>'
        )
    return f'<div class="s-subjects" role="group" aria-label="Subjects">{"".join(chips)}</div>'


def used_markup(studio: Studio, scene: Scene) -> str:
    """How strongly each used adapter acts."""
    rows = "".join(_use(studio, use) for use in scene.uses)
    return f'<ul class="s-uses" aria-label="Used adapters">{rows}</ul>' if rows else ""


def _use(studio: Studio, use: Use) -> str:
    entry = scenes.known(studio, use.adapter)
    name, id = entry.name if entry else "an adapter that is gone", use.adapter.removeprefix(LIBRARY_PREFIX)
    part = f' <span class="s-quiet">{esc(use.part)} alone</span>' if use.part else ""
    common = f'data-field="strength" data-adapter="{esc(use.adapter)}" step="0.05" value="{use.strength:g}"'
    label = esc(f"Strength of {name}")
    return (
        f'<li><span class="s-use-name">{esc(name)}{part}</span>'
        f'<input type="range" min="0" max="1.5" {common} data-key="range-{esc(id)}" aria-label="{label}">'
        f'<input type="number" {common} data-key="number-{esc(id)}" aria-label="{label}, as a number">'
        + button("Remove", "use", adapter=id, label=f"Do not use {name}")
        + "</li>"
    )


# --- pictures -----------------------------------------------------------------------------------------------


def pictures_markup(job: Job | None, notes: Sequence[str]) -> str:
    """A job's pictures as they come, with what can be asked of it; `notes` are what it warned of."""
    if job is None or not isinstance(job.request, SampleRequest):
        return _NO_PICTURES
    there = set(media.drawn_pictures(job))
    total = len(job.request.drawings)
    cells = "".join(_cell(job, number, number in there) for number in range(min(total, _SHOWN)))
    warned = message("\n".join(notes), "note") if notes else ""
    width, height = job.request.size or (1, 1)
    shape = f"--shape: {width} / {height}; --columns: {1 if total == 1 else 2 if total < 10 else 3}"
    return f'{_state(job)}{warned}<ul class="s-drawn" style="{shape}" aria-label="Pictures" tabindex="0">{cells}</ul>'


def _state(job: Job) -> str:
    """What it is at, in a line with what can be asked; nothing where all is there."""
    if job.state == "done":
        return ""
    share = words.share(job)
    bar = f'<progress max="1" value="{share or 0:.4f}" aria-label="progress"></progress>' if job.state in ACTIVE else ""
    ways = ""
    if job.state in (*ACTIVE, *WAITING, "paused"):
        ways += button("Stop", "cancel", key="stop")
    if job.state == "paused":
        ways += button("Resume", "resume", key="resume")
    if job.state in GIVEN_UP:
        ways += button("Try again" if job.state == "failed" else "Go on after all", "retry", key="retry")
    failed = words.failure(job)
    said = message(f"{failed.what} {failed.fix}", elem_id="drawing-failure") if failed else ""
    phase = f'<p class="s-phase" role="status" id="phase">{esc(words.stage(job))}</p>'
    return f'<div class="s-drawing">{phase}{bar}<span class="s-bar">{ways}</span></div>{said}'


def _cell(job: Job, number: int, there: bool) -> str:
    if not there:
        return '<li><div class="s-nothing">to come</div></li>' if job.state not in GIVEN_UP else ""
    assert isinstance(job.request, SampleRequest)
    drawing, url = job.request.drawings[number], f"/media/job/{job.id}/picture/{number}"
    return (
        f'<li><a href="{url}" target="_blank"><img src="{url}/small" alt="{esc(drawing.prompt)}, seed {drawing.seed}">'
        "</a></li>"
    )


def history_markup(jobs: Sequence[Job], more: bool) -> str:
    """What was drawn before, the newest first."""
    if not jobs:
        return _NO_HISTORY
    cards = "".join(_past(job) for job in jobs)
    way = button("Show more", "more", key="more") if more else ""
    return f'<ul class="s-history">{cards}</ul>{way}'


def _past(job: Job) -> str:
    assert isinstance(job.request, SampleRequest)
    numbers, title = media.drawn_pictures(job), esc(job.title)
    pictures = "".join(
        f'<img src="/media/job/{job.id}/picture/{number}/small" alt="" loading="lazy">' for number in numbers[:_FIRST]
    )
    state = words.ago(job.finished) if job.state == "done" else words.stage(job)
    facts = f"{job.request.what} · {state}"
    return (
        f'<li><div class="s-strip-of">{pictures or "<span class=s-nothing></span>"}</div>'
        f'<span class="s-prompt" title="{title}">{title}</span><span class="s-quiet">{esc(facts)}</span>'
        f'<a href="/create?job={job.id}" aria-label="Use these settings again: {title}">Use these settings again</a>'
        "</li>"
    )
