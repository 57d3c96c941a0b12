"""One adapter of the library (/adapter?id=…): name, tags, files for other programs, more training, relatives."""

from __future__ import annotations

from typing import Any

import gradio as gr

from adapters.errors import MissingError, StudioError, UserInputError
from studio import workers
from studio.queue import Submission
from studio.store import Job, LibraryAdapter
from ui.components import adapter_view, library_view
from ui.components.adapter_view import Refused
from ui.components.live import Live
from ui.components.markup import details, live_html, message
from ui.pages import page
from ui.studio import Studio

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
_GO = "(id) => { if (id) location.assign('/run?job=' + id); }"
_PARTS = ("head", "actions", "fields", "training", "exports", "family")
_NOWHERE = (
    '<section class="s-empty"><h1>No such adapter</h1><p>It is not in the library.</p>'
    '<p><a class="s-button s-primary" href="/library">Library</a></p></section>'
)
_MAX_STEPS = 1_000_000


@page("adapter", "Adapter", order=7, in_menu=False)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> Any:
    id, job = gr.Textbox(visible=False), gr.Textbox(visible=False)
    steps = gr.State(str(adapter_view.MORE_STEPS))
    base = gr.State("embedded")
    parts = {name: live_html(elem_id=f"adapter-{name}") for name in _PARTS[:2]}
    told = live_html(elem_id="adapter-told")
    parts |= {name: live_html(elem_id=f"adapter-{name}") for name in _PARTS[2:]}
    outputs = [told, *parts.values()]
    live.watch(lambda id, base: drawn(studio, id, base=base), list(parts.values()), [id, base])

    def acted(id: str, base: str, event: gr.EventData) -> list[Any]:
        return act(studio, id, base, details(event))

    def written(id: str, base: str, steps: str, event: gr.EventData) -> list[Any]:
        told = details(event)
        field, text = told.get("field", ""), told.get("value", "")
        if field == "steps":
            return [text, base, *_skip(len(outputs))]
        if field == "base":
            return [steps, text if text in studio.bases else base, *_skip(len(outputs))]
        return [steps, base, *write(studio, id, base, field, text)]

    def further(id: str, base: str, steps: str, event: gr.EventData) -> list[Any]:
        if details(event).get("action") != "further":
            return ["", *_skip(len(outputs))]
        return train_further(studio, id, base, steps)

    for name in ("actions", "fields", "exports"):
        parts[name].click(acted, [id, base], outputs, **_PRIVATE)
    told.click(acted, [id, base], outputs, **_PRIVATE)
    for name in ("fields", "training", "exports"):
        parts[name].input(written, [id, base, steps], [steps, base, *outputs], trigger_mode="multiple", **_PRIVATE)
    begun = parts["training"].click(further, [id, base, steps], [job, *outputs], **_PRIVATE)
    begun.then(None, job, None, js=_GO, api_visibility="private")

    def load(request: gr.Request) -> str:
        return request.query_params.get("id", "")

    return demo.load(load, None, id, **_PRIVATE)


def _skip(count: int) -> list[Any]:
    return [gr.skip()] * count


def drawn(studio: Studio, id: str, refused: Refused | None = None, base: str = "embedded") -> list[str]:
    """A value for each of _PARTS."""
    refused = refused or Refused()
    try:
        entry = studio.library.get_adapter(id)
    except StudioError:
        return [_NOWHERE, *[""] * (len(_PARTS) - 1)]
    parts = [adapter_view.head(studio, entry), adapter_view.actions(entry)]
    if entry.trashed_at is not None or not studio.library.has_file(entry):
        return [*parts, "", "", "", adapter_view.family(studio, entry)]
    bases = [] if entry.base else list(studio.bases.items())
    return [
        *parts,
        adapter_view.fields(entry, refused),
        adapter_view.training(_job(studio, entry), refused),
        adapter_view.exports(studio, entry, bases, base),
        adapter_view.family(studio, entry),
    ]


def _job(studio: Studio, entry: LibraryAdapter) -> Job | None:
    """What made it, if that is still known."""
    try:
        return None if entry.job is None else studio.queue.get_job(entry.job)
    except MissingError:
        return None


def act(studio: Studio, id: str, base: str, told: dict[str, str]) -> list[Any]:
    """Does what a button says; what is said of it, and the page as it then is."""
    library, said = studio.library, ""
    try:
        match told.get("action"):
            case "trash":
                said = library_view.undo([library.trash(id)])
            case "restore":
                said = message(f"{library.restore(id).name}: back in the library.", "good")
            case "untag":
                library.untag(id, [told.get("tag", "")])
            case "export":
                entry = library.get_adapter(id)
                studio.exports.begin(entry.id, told.get("form", ""), None if entry.base else base)
            case _:
                pass
    except StudioError as error:
        said = message(str(error))
    return [said, *drawn(studio, id, base=base)]


def write(studio: Studio, id: str, base: str, field: str, text: str) -> list[Any]:
    """Takes a field's text; what cannot be taken stays in the field, with the reason beside it."""
    refused = Refused()
    try:
        if field == "name":
            studio.library.rename(id, text)
        elif field == "tag":
            studio.library.tag(id, [tag for tag in text.split(",") if tag.strip()])
    except StudioError as error:
        refused = Refused(field, text[:400], str(error))
    return ["", *drawn(studio, id, refused, base)]


def train_further(studio: Studio, id: str, base: str, steps: str) -> list[Any]:
    """The job that goes on, and the page; pressed twice, it is one job."""
    try:
        made_by = _job(studio, studio.library.get_adapter(id))
        if made_by is None:
            raise MissingError("No training of this studio has made it.", "Teach a new subject.")
        asked = studio.clerk.ask("further", home=str(studio.home), job=made_by.id, steps=_count(steps))
        job = studio.queue.submit(Submission.model_validate(asked))
        workers.ensure(studio.queue)
    except StudioError as error:
        return ["", "", *drawn(studio, id, Refused("steps", steps[:20], str(error)), base)]
    return [job, "", *drawn(studio, id, base=base)]


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= _MAX_STEPS:
        raise UserInputError(f"{text[:20]!r} is no number of steps.", f"Give 1 to {_MAX_STEPS}.")
    return int(text)
