"""Home: what is going on, what came of it, what waits, and what this machine can do."""

from __future__ import annotations

import gradio as gr

from adapters.errors import StudioError
from studio.queue import Queue
from studio.store import Job
from studio.store.states import ACTIVE, OVER, STATES
from ui.components.jobs import job_card, queue_markup, results_markup
from ui.components.live import Live
from ui.components.markup import details, esc, live_html, message, plain_html
from ui.pages import page
from ui.studio import Studio

_RESULTS = 8
_EMPTY = """
<section class="s-empty" aria-labelledby="empty-title">
  <h1 id="empty-title">Teach it someone, something, or a style</h1>
  <p>Drop a handful of pictures, give them a name, and draw it anywhere. Everything stays on this machine.</p>
  <p><a class="s-button s-primary s-large" href="/new">Teach a new subject</a></p>
  <p><a href="/new?sample=1">Try it with the sample pictures</a></p>
</section>"""


@page("", "Home", order=0)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> None:
    running = plain_html(elem_id="running")
    waiting = live_html(elem_id="queue")
    results = plain_html(elem_id="results")
    machine = plain_html('<p class="s-quiet">Looking at this machine…</p>', elem_id="machine")
    live.watch(lambda: _drawn(studio), [running, waiting, results])

    def clicked(event: gr.EventData) -> str:
        return _queue_action(studio, details(event))

    waiting.click(clicked, None, waiting, api_visibility="private", show_progress="hidden")
    demo.load(lambda: _machine(studio), None, machine, api_visibility="private", show_progress="hidden")


def _drawn(studio: Studio) -> list[str]:
    active = studio.queue.list_jobs(ACTIVE)
    others = studio.queue.list_jobs([state for state in STATES if state not in (*ACTIVE, *OVER)])
    over = studio.queue.list_jobs(OVER, limit=_RESULTS)
    if not (active or others or over):
        return [_EMPTY, "", ""]
    return [_running(active), queue_markup(others), results_markup(over)]


def _running(active: list[Job]) -> str:
    head = '<div class="s-head"><h1>Home</h1><a class="s-button s-primary" href="/new">Teach a new subject</a></div>'
    cards = "".join(job_card(job) for job in active)
    return head + (f'<section aria-label="Running">{cards}</section>' if cards else "")


def _queue_action(studio: Studio, told: dict[str, str]) -> str:
    """Up, down, cancel or resume, of a waiting job."""
    trouble = ""
    try:
        act(studio.queue, told.get("action", ""), told.get("job", ""))
    except StudioError as error:
        trouble = message(str(error))
    return trouble + _drawn(studio)[1]


def act(queue: Queue, action: str, id: str) -> None:
    """Moves, cancels or resumes a waiting job; anything else is nothing."""
    if action in ("up", "down"):
        order = [job.id for job in queue.list_jobs(("queued", "interrupted"))]
        place = order.index(id) + 1 if id in order else 1
        queue.reorder(id, max(1, place + (-1 if action == "up" else 1)))
    elif action == "cancel":
        queue.send(id, "cancel")
    elif action == "resume":
        queue.send(id, "resume")


_MARKS = {"good": ("✓", "yes"), "note": ("·", "note"), "bad": ("✗", "no")}


def _machine(studio: Studio) -> str:
    try:
        findings: list[dict[str, str]] = studio.clerk.ask("machine")
    except StudioError as error:
        return message(str(error))
    rows = "".join(
        f'<li class="s-{esc(one["level"])}"><span aria-label="{_MARKS[one["level"]][1]}">{_MARKS[one["level"]][0]}'
        f"</span>{esc(one['text'])}</li>"
        for one in findings
    )
    verdicts = [one for one in findings if one["text"].startswith(("Can train", "Cannot train"))]
    summary = "".join(f'<p class="s-{esc(one["level"])}">{esc(_plain(one["text"]))}</p>' for one in verdicts)
    return (
        f'<section class="s-card" aria-labelledby="machine-title"><h2 id="machine-title">This machine</h2>{summary}'
        f"<details><summary>Everything that was found</summary><ul class='s-findings'>{rows}</ul></details></section>"
    )


def _plain(text: str) -> str:
    """A finding without the command that it ends in."""
    return text.partition(": studio")[0].rstrip(".") + "."
