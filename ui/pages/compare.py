"""Compare: a run's checkpoints (/compare?job=…) or adapters (/compare?adapters=…), side by side from one seed."""

from __future__ import annotations

from typing import Any

import gradio as gr

from adapters.errors import StudioError
from studio.store import Job, SampleRequest
from ui import comparison
from ui.comparison import Asked, Source
from ui.components import compare_view
from ui.components.live import Live
from ui.components.markup import details, esc, live_html, message, plain_html
from ui.pages import page
from ui.studio import Studio
from ui.subject import Problems

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
_REMEMBER = """(job, adapters, drawn) => {
  const told = new URLSearchParams(Object.entries({job, adapters, drawn}).filter(([, value]) => value));
  if (drawn) history.replaceState(null, '', '/compare?' + told);
}"""
_GO = "(id) => { if (id) location.assign('/create?adapters=' + id); }"
_FIELDS = ("rows", "prompts", "strengths", "seed", "steps", "")


@page("compare", "Compare", order=5)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> Any:
    address = [gr.Textbox(visible=False) for _ in range(3)]  # job, adapters, drawn
    going = gr.Textbox(visible=False)
    head = plain_html(elem_id="compare-head")
    with gr.Column(elem_classes="s-step", visible=False, elem_id="compare-form") as form:
        fields, notes = _form()
        start = gr.Button("Draw", variant="primary", elem_id="compare-start")
    progress = live_html(elem_id="compare-progress")
    live_html(compare_view.SLIDER, elem_id="compare-slider", script=compare_view.SLIDE)  # never sent again
    table = live_html(elem_id="compare-table", script=compare_view.SCRIPT)
    live.watch(lambda id: drawn(studio, id), [progress, table], [address[2]])

    def begin(job: str, adapters: str, before: str, *given: Any) -> list[Any]:
        offered = comparison.source(studio, job, adapters)
        id, problems = comparison.start(studio, offered, _asked(given))
        shown = drawn(studio, id) if id else [gr.skip()] * 2
        return [id or before, *shown, *_said(problems)]

    def acted(id: str, event: gr.EventData) -> list[Any]:
        return act(studio, id, details(event))

    begun = start.click(begin, [*address, *fields], [address[2], progress, table, *notes], **_PRIVATE)
    begun.then(None, address, None, js=_REMEMBER, api_visibility="private")
    for part in (progress, table):
        part.click(acted, address[2], [going, progress], **_PRIVATE).then(
            None, going, None, js=_GO, api_visibility="private"
        )

    def load(request: gr.Request) -> list[Any]:
        return loaded(studio, dict(request.query_params))

    return demo.load(load, None, [*address, head, form, *fields], **_PRIVATE)


def _form() -> tuple[list[Any], list[Any]]:
    """The fields in the order of comparison.Asked, and what is said of each in the order of _FIELDS."""
    notes: list[Any] = []

    def note(name: str) -> None:
        notes.append(plain_html(elem_id=f"compare-{name or 'start'}-problem"))

    rows = gr.CheckboxGroup([], label="Rows", elem_id="compare-rows")
    note("rows")
    prompts = gr.Textbox(
        label="Prompts, one a line", lines=3, max_length=20_000, elem_id="compare-prompts",
        info="{trigger} and {class} stand for each one's own words.",
    )  # fmt: skip
    note("prompts")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=200):
            strengths = gr.Textbox(
                "1", label="Strengths", info="1 is what was learnt.", max_length=200, elem_id="compare-strengths"
            )
            note("strengths")
        with gr.Column(min_width=160):
            seed = gr.Textbox("1", label="Seed", info="The same for all.", max_length=30, elem_id="compare-seed")
            note("seed")
        with gr.Column(min_width=160):
            steps = gr.Number(25, label="Steps", info="Of the sampler.", precision=0, elem_id="compare-steps")
            note("steps")
    note("")
    return [rows, prompts, strengths, seed, steps], notes


def _asked(given: tuple[Any, ...]) -> Asked:
    rows, prompts, strengths, seed, steps = given
    return Asked(tuple(map(str, rows or ())), str(prompts or ""), str(strengths or ""), str(seed or ""), steps)


def _said(problems: Problems) -> list[str]:
    return [message(problems.of(name)) for name in _FIELDS]


def loaded(studio: Studio, told: dict[str, str]) -> list[Any]:
    """The form as the address tells it; what was drawn before fills it in."""
    job, adapters, id = (told.get(name, "")[:2000] for name in ("job", "adapters", "drawn"))
    offered, before = comparison.source(studio, job, adapters), _drawing(studio, id)
    head = _head(studio, offered, bool(job or adapters), before)
    choices = [(one.label, one.key) for one in offered.variants]
    asked = before.request if before is not None and isinstance(before.request, SampleRequest) else None
    rows = [
        one.key
        for one in offered.variants
        if asked is None or one.adapter in {d.uses[0].adapter for d in asked.drawings}
    ]
    strengths = dict.fromkeys(f"{one.uses[0].strength:g}" for one in asked.drawings) if asked else ["1"]
    return [
        job, adapters, before.id if before is not None else "", head, gr.Column(visible=bool(offered.variants)),
        gr.CheckboxGroup(choices, value=rows), comparison.prompts(offered, asked), ", ".join(strengths),
        str(asked.drawings[0].seed) if asked else "1", asked.steps if asked else 25,
    ]  # fmt: skip


def _drawing(studio: Studio, id: str) -> Job | None:
    """The comparison of that id."""
    try:
        job = studio.queue.get_job(id)
    except StudioError:
        return None
    fits = isinstance(job.request, SampleRequest) and comparison.grid(job.request) is not None
    return job if fits else None


def _head(studio: Studio, offered: Source, named: bool, before: Job | None) -> str:
    if offered.trouble or (named and not offered.variants):
        return f"<h1>Compare</h1>{message(offered.trouble or 'There is nothing to compare yet.')}"
    if not named:
        ended = studio.queue.list_jobs(("done", "running", "paused", "cancelled"), kind="train", limit=8)
        return "<h1>Compare</h1>" if before is not None else compare_view.CHOOSE + compare_view.runs(ended)
    if offered.job is None:
        return "<h1>Compare</h1>"
    title, kept = esc(offered.job.title), offered.job.config.get("keep_checkpoints", "")
    return (
        f'<h1>Compare checkpoints: {title}</h1><p class="s-quiet">A run keeps its newest checkpoints; this one '
        f"{esc(str(kept))} (setting keep_checkpoints).</p>"
    )


def drawn(studio: Studio, id: str) -> list[str]:
    """Progress and table of a comparison."""
    job = _drawing(studio, id)
    return ["", ""] if job is None else [compare_view.progress(job), compare_view.table(studio, job)]


def act(studio: Studio, id: str, told: dict[str, str]) -> list[Any]:
    """Stops the drawing, or takes a row's adapter to Create: its id in the library, and what is said."""
    row = told.get("row", "")
    try:
        if told.get("action") == "cancel":
            studio.queue.send(id, "cancel")
        elif told.get("action") == "use" and row.isdecimal():
            return [comparison.keep(studio, studio.queue.get_job(id), int(row)), gr.skip()]
    except StudioError as error:
        return ["", message(str(error))]
    return ["", gr.skip()]
