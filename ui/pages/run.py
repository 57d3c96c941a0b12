"""One run (/run?job=…): how far it is, what it draws, what can be asked of it, and what went wrong, if so."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from adapters.errors import StudioError
from studio import workers
from studio.queue import Submission
from ui.components import run_view, words
from ui.components.jobs import address
from ui.components.live import Live
from ui.components.markup import details, esc, live_html, message, plain_html
from ui.course import Courses
from ui.pages import page
from ui.studio import Studio

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
_ASKS = ("pause", "cancel", "save", "sample", "resume")
_GO = "(id) => { if (id) location.assign('/run?job=' + id); }"
_NOWHERE = (
    '<section class="s-empty"><h1>No such run</h1><p>It is not in this studio’s list.</p>'
    '<p><a class="s-button s-primary" href="/">Home</a></p></section>'
)
_ELSEWHERE = (
    '<section class="s-empty"><h1>{title}</h1><p>This is no run: it {state}.</p>'
    '<p><a class="s-button s-primary" href="{address}">See it</a></p></section>'
)
_CHOOSE = (
    '<section class="s-empty"><h1>Nothing to watch yet</h1><p>A run shows here while it learns.</p>'
    '<p><a class="s-button s-primary" href="/new">Teach a new subject</a></p></section>'
)


@page("run", "Run", order=2)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> Any:
    courses = Courses(studio.queue)
    job_id, next_id = gr.Textbox(visible=False), gr.Textbox(visible=False)
    head = plain_html(elem_id="run-head")
    actions = live_html(elem_id="run-actions")
    told = plain_html(elem_id="run-told")
    failure = live_html(elem_id="run-failure")
    notes = plain_html(elem_id="run-notes-box")
    samples = plain_html(elem_id="run-samples")
    plot = gr.LinePlot(
        None, x="step", y="loss", title="Loss, smoothed", height=260, elem_id="loss", visible=False,
        x_title="step", y_title="loss", buttons=[],
    )  # fmt: skip

    def draw(id: str) -> list[Any]:
        return drawn(studio, courses, id)

    live.watch(draw, [head, actions, failure, notes, samples, plot], [job_id])

    def ask(id: str, event: gr.EventData) -> list[str]:
        return _ask(studio, id, details(event))

    for part in (actions, failure):
        part.click(ask, job_id, [told, next_id], **_PRIVATE).then(None, next_id, None, js=_GO, api_visibility="private")

    def load(request: gr.Request) -> str:
        return request.query_params.get("job") or _latest(studio)

    return demo.load(load, None, job_id, **_PRIVATE)


def _latest(studio: Studio) -> str:
    """The run that comes first to mind where none is named: the running one, else the last."""
    found = studio.queue.list_jobs(("running", "preparing"), kind="train")
    found = found or studio.queue.list_jobs(kind="train", limit=1)
    return found[0].id if found else ""


def drawn(studio: Studio, courses: Courses, id: str) -> list[Any]:
    """A value for each part of the page."""
    hidden = gr.LinePlot(visible=False)
    if not id:
        return [_CHOOSE, "", "", "", "", hidden]
    try:
        job = studio.queue.get_job(id)
        if job.kind != "train":
            told = _ELSEWHERE.format(title=esc(job.title), state=words.state(job), address=address(job))
            return [told, "", "", "", "", hidden]
        course = courses.of(job.id)
    except StudioError:
        return [_NOWHERE, "", "", "", "", hidden]
    points = course.smoothed()
    plot = gr.LinePlot(_frame(points), visible=True) if len(points) > 1 else hidden
    return [
        run_view.head(job),
        run_view.actions(job, studio.queue.asked(job.id), studio.library.of_job(job.id)),
        run_view.failure(job),
        run_view.notes(course),
        run_view.samples(job, course),
        plot,
    ]


def _frame(points: list[tuple[int, float]]) -> pd.DataFrame:
    return pd.DataFrame(points, columns=["step", "loss"])  # pyright: ignore[reportArgumentType]


def _ask(studio: Studio, id: str, told: dict[str, str]) -> list[str]:
    """Does what a button says; a sentence where it cannot be, and the job to go to where there is a new one.

    That it was asked for is shown from the store, in every tab, until it is done.
    """
    action = told.get("action", "")
    try:
        if action == "remedy":
            return ["", _with_preset(studio, id, told.get("preset", ""))]
        if action == "retry":
            studio.queue.retry(id)
        elif action in _ASKS:
            studio.queue.send(id, action)  # pyright: ignore[reportArgumentType]
        workers.ensure(studio.queue)
    except StudioError as error:
        return [message(str(error)), ""]
    return ["", ""]


def _with_preset(studio: Studio, id: str, preset: str) -> str:
    """A new job with this one's settings under a preset's; pressed twice, it is one job."""
    found = studio.queue.get_job(id)
    asked = studio.clerk.ask("again", job=found.id, home=str(studio.home), preset=preset)
    new = Submission.model_validate(asked).model_copy(update={"key": f"{found.id}:{preset}", "title": found.title})
    id = studio.queue.submit(new)
    workers.ensure(studio.queue)
    return id
