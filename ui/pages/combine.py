"""Combine: subjects of the library in one file or each in its region, and pictures that tell what became of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, cast

import gradio as gr

from adapters.errors import StudioError
from studio import workers
from trainers.places import LARGEST
from ui import combination, combining
from ui.combination import Combination, Subject
from ui.combining import Combining
from ui.components import combine_form, fusion_view
from ui.components.live import Live
from ui.components.markup import details, live_html, message, plain_html
from ui.components.regions import regions_html, take_regions, texts_of
from ui.forms import Forms
from ui.pages import page
from ui.studio import Studio

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
# Gradio's usual "once" drops what comes while the one before is under way.
_IN_TURN: dict[str, Any] = {
    **_PRIVATE, "concurrency_id": "combine", "concurrency_limit": 1, "trigger_mode": "multiple"
}  # fmt: skip
_REMEMBER = "(id) => { history.replaceState(null, '', '/combine?draft=' + id); }"
_PARTS = ("subjects", "mix", "regions", "start", "result", "preview", "pictures")
_FOLLOWED = ("result", "pictures")
_QUIET = ("weight", "prompt", "seed")
"""Fields whose own text is all that changes."""


@page("combine", "Combine", order=4)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> Any:
    forms = Forms(studio.home / "combinations", Combination)
    screen = Screen(studio, forms)
    draft_id, fields = gr.Textbox(visible=False), gr.Textbox(visible=False)
    plain_html(
        "<h1>Combine</h1><p class='s-quiet'>Subjects that were taught on their own, together in one picture.</p>"
    )
    parts = {name: _part(name) for name in _PARTS}
    outputs = [parts[name] for name in _PARTS]
    live.watch(screen.followed, [parts[name] for name in _FOLLOWED], [draft_id])

    def changed(id: str, event: gr.EventData) -> list[Any]:
        return screen.changed(id, details(event))

    def pressed(id: str, texts: str, event: gr.EventData) -> list[Any]:
        return screen.pressed(id, texts, details(event))

    for name, part in parts.items():
        heard = screen.drawn if name == "regions" else changed
        part.input(heard, draft_id, outputs, **_IN_TURN)
        part.click(pressed, [draft_id, fields], outputs, js=combine_form.COLLECT, **_PRIVATE)
    loaded = demo.load(_loader(studio, forms), None, draft_id, **_PRIVATE)
    loaded.then(None, draft_id, None, js=_REMEMBER, api_visibility="private")
    return loaded.then(screen.whole, draft_id, outputs, **_PRIVATE)


def _part(name: str) -> gr.HTML:
    named = f"combine-{name}"
    return regions_html(elem_id=named) if name == "regions" else live_html(elem_id=named, script=combine_form.SCRIPT)


def _loader(studio: Studio, forms: Forms[Combination]) -> Callable[[gr.Request], str]:
    def load(request: gr.Request) -> str:
        asked = dict(request.query_params)
        try:
            if "draft" in asked:
                return forms.get(asked["draft"]).id
        except StudioError:
            pass
        with forms.changing(forms.new().id) as form:
            fill(studio, form, asked)
        return form.id

    return load


def fill(studio: Studio, form: Combination, asked: Mapping[str, str]) -> None:
    """What an address asks for: /combine?adapters=ID,ID and /combine?job=JOB. What is not there is left out."""
    try:
        if "job" in asked:
            combining.of_job(form, studio.queue.get_job(asked["job"]))
    except StudioError:
        return
    for id in asked.get("adapters", "").split(",")[:LARGEST]:
        try:
            combination.choose(form, studio.library.get_adapter(id).id, True)
        except StudioError:
            continue


class Screen:
    """The parts of the page, each drawn from the form on the disk."""

    def __init__(self, studio: Studio, forms: Forms[Combination]) -> None:
        self.studio, self.forms, self.combining = studio, forms, Combining(studio)

    # --- drawing ------------------------------------------------------------------------------------------

    def whole(self, id: str) -> list[Any]:
        try:
            return self.show(self.forms.get(id))
        except StudioError as error:
            return self._only(subjects=message(str(error)))

    def followed(self, id: str) -> list[str]:
        """What moves with the queue."""
        try:
            form = self.forms.get(id)
            return [self._result(form), self._pictures(form)]
        except StudioError as error:
            return [message(str(error)), ""]

    def show(self, form: Combination, problems: Mapping[str, str] | None = None) -> list[Any]:
        """A value for each part; `problems`: what is wrong, by field."""
        try:
            listed = self.combining.listed(form)
            subjects = _in_order(form, listed)
            advice = self.combining.advice(form) if len(subjects) > 1 else {}
        except StudioError as error:
            return self._only(subjects=message(str(error)))
        if len(listed) < 2:
            return self._only(**dict.fromkeys(_PARTS, "") | {"subjects": combine_form.empty_markup(len(listed))})
        said = problems or {}
        bases = self.studio.bases
        reasons = self.combining.misfits(form, subjects)
        free = [one for one in listed if one.entry.id not in form.ids]
        reasons |= {one.entry.id: combination.why_not(one, subjects, bases) for one in free}
        fused = self.combining.made(self.combining.job(form)) is not None
        values = {
            "subjects": combine_form.subjects_markup(listed, form, reasons, said.get("adapters", "")),
            "mix": combine_form.mix_markup(form, subjects, advice, said),
            "regions": combine_form.canvas_markup(form, subjects, said.get("regions", "")),
            "start": combine_form.start_markup(form, said.get("", "")),
            "result": self._result(form),
            "preview": combine_form.preview_markup(form, subjects, said, fused),
            "pictures": self._pictures(form),
        }
        return [values[name] for name in _PARTS]

    def _only(self, **values: str) -> list[Any]:
        return [values.get(name, gr.skip()) for name in _PARTS]

    def _result(self, form: Combination) -> str:
        job = self.combining.job(form)
        if job is None or (form.apart and job.state == "done"):
            return ""
        if job.state != "done":
            return fusion_view.going_markup(job)
        try:
            return fusion_view.report_markup(job, self.combining.made(job), self.combining.report(job))
        except StudioError as error:
            return message(str(error))

    def _pictures(self, form: Combination) -> str:
        jobs = {}
        for id in dict.fromkeys(one.job for one in form.shown):
            try:
                jobs[id] = self.studio.queue.get_job(id)
            except StudioError:
                continue
        return fusion_view.pictures_markup(form.shown, jobs)

    # --- hearing ------------------------------------------------------------------------------------------

    def changed(self, id: str, told: dict[str, str]) -> list[Any]:
        """A field was changed."""
        field = told.get("field", "")
        try:
            with self.forms.changing(id) as form:
                self._put(form, told)
        except StudioError as error:
            return self._only(subjects=message(str(error)))
        return [gr.skip()] * len(_PARTS) if field in _QUIET else self.show(form)

    def drawn(self, id: str, event: gr.EventData) -> list[Any]:
        """Regions were drawn; the canvas shows them already."""
        try:
            with self.forms.changing(id) as form:
                take_regions(form, event)
        except StudioError as error:
            return self._only(subjects=message(str(error)))
        return [gr.skip()] * len(_PARTS)

    def pressed(self, id: str, texts: str, told: dict[str, str]) -> list[Any]:
        """A button was pressed, with all fields as they stand."""
        action = told.get("action", "")
        try:
            with self.forms.changing(id) as form:
                for one in _fields(texts):
                    self._put(form, one)
                if action == "reseed":
                    form.seed = str(secrets.randbelow(2**31))
                elif action == "reset":
                    form.options.pop(told.get("key", ""), None)
            problems = self._act(form, action)
        except StudioError as error:
            return self._only(start=message(str(error)))
        return self.show(form, problems)

    def _put(self, form: Combination, told: dict[str, str]) -> None:
        field, value, adapter = told.get("field", ""), told.get("value", ""), told.get("adapter", "")
        if field == "adapter":
            known = self.studio.library.get_adapter(adapter).id if value == "true" else adapter
            combination.choose(form, known, value == "true")
        elif field == "regions":
            form.regions = texts_of(value)
        else:
            key, usual = told.get("key", ""), told.get("usual", "")
            combination.put(form, field, value, adapter=adapter, key=key, usual=usual)

    def _act(self, form: Combination, action: str) -> dict[str, str]:
        """Does what a button says; what is wrong, by field."""
        if action == "fuse":
            job, problems = self.combining.fuse(form, key=combining.key_of(form))
            if job:
                self._keep(form, job=job)
            return problems.fields
        if action == "draw":
            shown, problems = self.combining.draw(form)
            if shown:
                self._keep(form, shown=shown)
            return problems.fields
        if action in ("cancel", "resume") and form.job:
            self.studio.queue.send(form.job, action)
        elif action == "again" and form.job:
            self.studio.queue.retry(form.job)
        if action in ("resume", "again"):
            workers.ensure(self.studio.queue)
        return {}

    def _keep(self, form: Combination, **values: Any) -> None:
        with self.forms.changing(form.id) as kept:
            for name, value in values.items():
                setattr(kept, name, value)
                setattr(form, name, value)


def _in_order(form: Combination, listed: list[Subject]) -> list[Subject]:
    """The chosen ones; one that has gone from the library is taken from the form that is shown."""
    known = {one.entry.id: one for one in listed}
    form.parts = [part for part in form.parts if part.adapter in known]
    return [known[id] for id in form.ids]


def _fields(texts: str) -> list[dict[str, str]]:
    """What a browser says that its fields hold; from anybody, so texts alone are taken."""
    try:
        found = json.loads(texts[:100_000])
    except ValueError:
        return []
    rows = cast("list[Any]", found) if isinstance(found, list) else []
    return [
        {str(key): value for key, value in cast("dict[Any, Any]", row).items() if isinstance(value, str)}
        for row in rows
        if isinstance(row, dict)
    ]
