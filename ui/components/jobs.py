"""Jobs as cards and lists."""

from __future__ import annotations

from pathlib import Path

from studio.store import Job
from ui import media
from ui.components import words
from ui.components.markup import button, esc

_PAGES = {"train": "run", "sample": "create", "fuse": "combine"}


def sample_url(job: Job) -> str | None:
    """The newest sample's address."""
    return None if job.progress.sample is None else f"/media/job/{job.id}/sample/{Path(job.progress.sample).name}"


def address(job: Job) -> str:
    """The page that shows it."""
    return f"/{_PAGES[job.kind]}?job={job.id}"


def picture(job: Job) -> str:
    """What it has drawn, a fusion's report, or the first picture that it learns from; else an empty square."""
    numbers = media.drawn_pictures(job)
    if url := sample_url(job):
        what = "newest sample"
    elif numbers:
        url, what = f"/media/job/{job.id}/picture/{numbers[0]}/small", "first picture"
    elif (job.run / media.REPORT).is_file():
        url, what = f"/media/job/{job.id}/report", "where its subjects meet"
    elif media.references(job):
        url, what = f"/media/job/{job.id}/reference/0", "one of its pictures"
    else:
        return '<span class="s-nothing" aria-hidden="true"></span>'
    return f'<img src="{esc(url)}" alt="{esc(job.title)}: {what}" loading="lazy">'


def job_card(job: Job) -> str:
    """The running job with its bar."""
    share = words.share(job)
    bar = f'<progress max="1" value="{share:.4f}" aria-label="progress"></progress>' if share is not None else ""
    figures = " · ".join(f"{name.lower()} {value}" for name, value in words.figures(job)[:2])
    return (
        f'<a class="s-card s-job" href="{address(job)}">{picture(job)}<div><h2>{esc(job.title)}</h2>'
        f"<p>{esc(' · '.join(filter(None, (words.stage(job), words.left(job)))))}</p>{bar}"
        f'<p class="s-quiet">{esc(figures)}</p></div></a>'
    )


def queue_markup(jobs: list[Job]) -> str:
    """What waits, in order, with buttons that move and cancel it."""
    if not jobs:
        return ""
    movable = [job for job in jobs if job.state in ("queued", "interrupted")]
    rows = "".join(_row(job, movable) for job in jobs)
    return _section("queue", "Waiting", f'<ol class="s-list">{rows}</ol>')


def _row(job: Job, movable: list[Job]) -> str:
    buttons: list[str] = []
    if job in movable and job is not movable[0]:
        buttons.append(button("↑", "up", job=job.id, label=f"Move {job.title} up"))
    if job in movable and job is not movable[-1]:
        buttons.append(button("↓", "down", job=job.id, label=f"Move {job.title} down"))
    if job.state == "paused":
        buttons.append(button("Resume", "resume", job=job.id, label=f"Resume {job.title}"))
    buttons.append(button("Cancel", "cancel", job=job.id, label=f"Cancel {job.title}"))
    return (
        f'<li><a href="{address(job)}"><b>{esc(job.title)}</b></a> '
        f'<span class="s-quiet">{words.state(job)}</span>'
        f'<span class="s-actions">{"".join(buttons)}</span></li>'
    )


def results_markup(jobs: list[Job]) -> str:
    """What is over, as small cards."""
    if not jobs:
        return ""
    cards = "".join(
        f'<li><a class="s-result" href="{address(job)}">{picture(job)}<b>{esc(job.title)}</b>'
        f'<span class="s-quiet s-state-{job.state}">{words.state(job)}, {words.ago(job.finished)}</span>'
        "</a></li>"
        for job in jobs
    )
    return _section("results", "Recent", f'<ul class="s-grid">{cards}</ul>')


def _section(name: str, title: str, inner: str) -> str:
    return f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{inner}</section>'
