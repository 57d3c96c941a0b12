"""New subject: pictures, a name, how to learn, and a start. The draft on the disk is the form's only memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from adapters.errors import StudioError
from ui import subject, uploads
from ui.components import knobs
from ui.components.live import Live
from ui.components.markup import details, live_html, message, plain_html
from ui.components.new_form import PARTS, Form
from ui.drafts import Draft
from ui.pages import page
from ui.studio import Studio
from ui.subject import Problems

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
# One after the other: the clerk may take his time, and what is drawn last has to be drawn from the last change.
_IN_TURN: dict[str, Any] = {**_PRIVATE, "concurrency_id": "new", "concurrency_limit": 1}
# Gradio's usual "once" drops what comes while the one before is under way.
_EVERY: dict[str, Any] = {**_IN_TURN, "trigger_mode": "multiple"}
_REMEMBER = "(id) => { history.replaceState(null, '', '/new?draft=' + id); }"
_GO = "(id) => { if (id) location.assign('/run?job=' + id); }"


@page("new", "New subject", order=1)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> None:
    screen = Form(studio)
    draft_id = gr.Textbox(visible=False)
    plain_html("<h1>New subject</h1>")
    with gr.Column(elem_classes="s-step"):
        plain_html("<h2>1. Pictures</h2><p class='s-quiet'>Five to twenty, showing it from several sides and in "
                   "several places. A text file of the same name is taken as a caption.</p>")  # fmt: skip
        drop = gr.File(file_count="multiple", label="Drop pictures here", elem_id="drop", height=150)
        pictures = live_html(elem_id="pictures")
    fields = _subject_fields()
    with gr.Column(elem_classes="s-step"):
        plain_html("<h2>3. How to learn</h2>")
        choices = [(name, base) for base, name in studio.bases.items()]
        base = gr.Dropdown(choices, value="embedded", label="Model to teach", elem_id="base")
        presets = live_html("<p class='s-quiet'>Estimating for this machine…</p>", elem_id="presets")
        with gr.Accordion("More control", open=False, elem_id="more"):
            settings = _settings()
    with gr.Column(elem_classes="s-step"):
        plain_html("<h2>4. Start</h2>")
        review = plain_html(elem_id="review")
        start = gr.Button("Start learning", variant="primary", elem_id="start", size="lg")
    screen.parts = {
        "pictures": pictures, **{name: fields[name] for name in ("trigger_note", "class_note")}, "presets": presets,
        **settings, "review": review,
    }  # fmt: skip
    inputs = [fields[name] for name in ("name", "kind", "class_word", "trigger")]
    loaded = demo.load(_loader(studio), None, [draft_id, *inputs, base], **_PRIVATE)
    loaded.then(None, draft_id, None, js=_REMEMBER, api_visibility="private")
    # Pictures need no clerk, who takes a while to wake: they come first, and what he tells does not redraw them.
    loaded.then(_filler(screen, ("pictures",)), [draft_id, *inputs], screen.outputs(), **_PRIVATE)
    loaded.then(_filler(screen, PARTS[1:]), [draft_id, *inputs], screen.outputs(), **_IN_TURN)
    _wire_pictures(studio, screen, draft_id, drop, pictures, loaded)
    _wire_fields(screen, draft_id, inputs, fields, base)
    _wire_settings(studio, screen, draft_id, presets, settings)
    _wire_start(studio, screen, start, [draft_id, *inputs])


def _subject_fields() -> dict[str, Any]:
    with gr.Column(elem_classes="s-step"):
        plain_html("<h2>2. Name</h2>")
        name = gr.Textbox(label="What you call it", placeholder="Otto", max_length=80, elem_id="name")
        kinds = [(text, kind) for kind, text in subject.KINDS.items()]
        kind = gr.Radio(kinds, value="object", label="It is", elem_id="kind")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=260):
                class_word = gr.Textbox(
                    label="What it is, in a word", placeholder="dog, backpack, painting", max_length=60,
                    elem_id="class-word",
                )  # fmt: skip
                class_note = plain_html(elem_id="class-note")
            with gr.Column(min_width=260):
                trigger = gr.Textbox(
                    label="Word that will stand for it in prompts", max_length=40, elem_id="trigger",
                )  # fmt: skip
                trigger_note = plain_html(elem_id="trigger-note")
    return {
        "name": name, "kind": kind, "class_word": class_word, "trigger": trigger,
        "class_note": class_note, "trigger_note": trigger_note,
    }  # fmt: skip


def _settings() -> dict[str, Any]:
    with gr.Tabs():
        with gr.Tab("Settings"):
            chosen = live_html(elem_id="knobs", script=knobs.SCRIPT)
        with gr.Tab("As YAML"):
            text = gr.Code(language="yaml", label="Configuration", elem_id="yaml", interactive=True, lines=16)
            apply = gr.Button("Use this YAML", elem_id="use-yaml", size="sm")
            note = plain_html(elem_id="yaml-note")
        with gr.Tab("As a command"):
            command = gr.Code(language="shell", label="Command", elem_id="command", interactive=False, lines=2,
                              wrap_lines=True)  # fmt: skip
    # The button is no output: Form leaves it out.
    return {"knobs": chosen, "yaml": text, "yaml_note": note, "command": command, "_apply": apply}


def _loader(studio: Studio) -> Callable[[gr.Request], list[Any]]:
    def load(request: gr.Request) -> list[Any]:
        asked = dict(request.query_params)
        draft = _opened(studio, asked.get("draft"))
        if "sample" in asked and not draft.pictures:
            draft = _sample(studio, draft.id)
        elif "copy" in asked and not draft.pictures:
            draft = _copied(studio, draft.id, asked["copy"])
        trigger = draft.trigger or subject.free_trigger(studio)
        if trigger != draft.trigger:
            with studio.drafts.changing(draft.id) as draft:
                draft.trigger = trigger
        base = draft.base if draft.base in studio.bases else "embedded"
        texts = [text or gr.skip() for text in (draft.name, draft.kind, draft.class_word, draft.trigger)]
        return [draft.id, *texts, base]  # skipped: somebody may have begun to write before this came

    return load


def _opened(studio: Studio, id: str | None) -> Draft:
    try:
        return studio.drafts.new() if id is None else studio.drafts.get(id)
    except StudioError:
        return studio.drafts.new()


def _sample(studio: Studio, id: str) -> Draft:
    with studio.drafts.changing(id) as draft:
        uploads.take(studio.drafts, draft, uploads.sample_pictures())
        draft.name, draft.class_word, draft.kind = "Octopus", "octopus", "object"
        draft.trigger, draft.preset = "sks", "quick"
    return draft


def _copied(studio: Studio, id: str, job: str) -> Draft:
    """A new draft with the pictures and the settings of a job."""
    try:
        return subject.copy_of(studio, id, job)
    except StudioError:
        return studio.drafts.get(id)


def _wire_pictures(studio: Studio, screen: Form, draft_id: Any, drop: Any, pictures: Any, loaded: Any) -> None:
    early = gr.State()
    """What was dropped while the page was still coming."""

    def dropped(id: str, files: list[str] | None) -> list[Any]:
        if not id or not files:
            return [gr.skip(), files, *screen.only()]

        def take(draft: Draft) -> list[str]:
            sent = uploads.received(studio.home, files)
            refused = uploads.take(studio.drafts, draft, sent)
            for file in sent:
                file.unlink(missing_ok=True)
            return refused

        return [None, None, *screen.change(id, take, ("pictures",))]

    def reviewed(id: str) -> list[Any]:
        return screen.change(id, lambda draft: None, ("review",))

    def acted(id: str, event: gr.EventData) -> list[Any]:
        told = details(event)
        return screen.change(
            id, lambda draft: studio.drafts.remove(draft, told.get("picture", "")), ("pictures", "review")
        )

    def captioned(id: str, event: gr.EventData) -> None:
        told = details(event)
        with studio.drafts.changing(id) as draft:
            for picture in draft.pictures:
                if picture.id == told.get("picture"):
                    picture.caption = " ".join(told.get("value", "").split())[:1000]

    outputs = [drop, early, *screen.outputs()]
    taken = (
        loaded.then(dropped, [draft_id, early], outputs, **_PRIVATE),
        drop.upload(dropped, [draft_id, drop], outputs, **{**_PRIVATE, "show_progress": "minimal"}),
    )
    for event in taken:
        event.then(reviewed, draft_id, screen.outputs(), **_EVERY)
    pictures.click(acted, draft_id, screen.outputs(), **_EVERY)
    pictures.input(captioned, draft_id, None, **_EVERY)


def _wire_fields(screen: Form, draft_id: Any, inputs: list[Any], fields: dict[str, Any], base: Any) -> None:
    filled = _filler(screen, ("trigger_note", "class_note", "command", "yaml", "review"))

    def kind_chosen(kind: str, before: str) -> str:
        return subject.usual_class(kind, before)

    def base_chosen(id: str, base: str) -> list[Any]:
        def put(draft: Draft) -> None:
            draft.base = base if base in screen.studio.bases else "embedded"

        return screen.change(id, put)

    outputs = screen.outputs()
    texts = [fields[name] for name in ("name", "class_word", "trigger")]
    moments = [listener for text in texts for listener in (text.input, text.blur)]  # input: typed; blur: pasted, too
    gr.on(moments, filled, [draft_id, *inputs], outputs, trigger_mode="always_last", **_IN_TURN)
    fields["kind"].input(kind_chosen, inputs[1:3], inputs[2], **_PRIVATE).then(
        filled, [draft_id, *inputs], outputs, **_EVERY
    )
    base.input(base_chosen, [draft_id, base], outputs, **_EVERY)


def _filler(screen: Form, parts: Sequence[str]) -> Callable[..., list[Any]]:
    """Takes the subject's fields into the draft, and draws those parts."""

    def filled(id: str, name: str, kind: str, class_word: str, trigger: str) -> list[Any]:
        def put(draft: Draft) -> None:
            put_fields(draft, name, kind, class_word, trigger)

        return screen.change(id, put, parts)

    return filled


def put_fields(draft: Draft, name: str, kind: str, class_word: str, trigger: str) -> None:
    draft.name, draft.kind = name.strip()[:80], kind if kind in subject.KINDS else "other"
    draft.class_word, draft.trigger = " ".join(class_word.split())[:60], " ".join(trigger.split())[:40]


def _wire_settings(studio: Studio, screen: Form, draft_id: Any, presets: Any, settings: dict[str, Any]) -> None:
    def preset_chosen(id: str, event: gr.EventData) -> list[Any]:
        def put(draft: Draft) -> None:
            draft.preset = details(event).get("value", draft.preset)

        return screen.change(id, put, ("presets", "knobs", "yaml", "command", "review"))

    def knob_set(id: str, event: gr.EventData) -> list[Any]:
        told = details(event)
        return screen.change(id, lambda draft: screen.set_knob(draft, told.get("key", ""), told.get("value")))

    def knob_reset(id: str, event: gr.EventData) -> list[Any]:
        told = details(event)
        return screen.change(id, lambda draft: draft.settings.pop(told.get("key", ""), None))

    def use_yaml(id: str, text: str) -> list[Any]:
        try:
            draft = studio.drafts.get(id)
            found = studio.clerk.ask("settings_of_yaml", text=text[:100_000], preset=draft.preset, base=draft.base)
        except StudioError as error:
            return screen.only(yaml_note=message(str(error)))
        return screen.change(id, lambda draft: setattr(draft, "settings", found))

    outputs = screen.outputs()
    presets.input(preset_chosen, draft_id, outputs, **_EVERY)
    settings["knobs"].input(knob_set, draft_id, outputs, **_EVERY)
    settings["knobs"].click(knob_reset, draft_id, outputs, **_EVERY)
    settings["_apply"].click(use_yaml, [draft_id, settings["yaml"]], outputs, **_IN_TURN)


def _wire_start(studio: Studio, screen: Form, button: Any, inputs: list[Any]) -> None:
    job_id, told = gr.Textbox(visible=False), gr.State()

    def start(id: str, name: str, kind: str, class_word: str, trigger: str) -> tuple[str, Problems | None]:
        with studio.drafts.changing(id) as draft:
            put_fields(draft, name, kind, class_word, trigger)
        job, problems = subject.start(studio, draft)
        with studio.drafts.changing(id) as draft:
            draft.refused = not job
        return job, None if job else problems

    def refused(id: str, problems: Problems | None) -> list[Any]:
        return screen.only() if problems is None else screen.show(studio.drafts.get(id), problems=problems)

    started = button.click(start, inputs, [job_id, told], **_IN_TURN)
    started.then(None, job_id, None, js=_GO, api_visibility="private")
    # An event of its own: Gradio's browser side may take two answers that come together in the wrong order, and what a
    # field's last change drew would then lie over the refusal.
    started.then(refused, [inputs[0], told], screen.outputs(), **_IN_TURN)
