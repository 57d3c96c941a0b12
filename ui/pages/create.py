"""Create: a prompt, subjects of the library, and pictures as they come. The scene on the disk is the form's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from adapters.errors import StudioError
from studio import workers
from studio.store import Job
from ui import scene_sources, scenes, uploads
from ui.components.create_form import Form
from ui.components.live import Live
from ui.components.markup import details, live_html, plain_html
from ui.components.regions import take_regions
from ui.components.scene_view import chips_markup, history_markup, pictures_markup
from ui.course import Courses
from ui.forms import Forms
from ui.pages import page
from ui.scenes import LONGEST, Scene
from ui.studio import Studio
from ui.subject import Problems

# One after the other: what was changed last before a press is in what is drawn.
_PRIVATE: dict[str, Any] = {
    "api_visibility": "private", "show_progress": "hidden", "concurrency_id": "create", "concurrency_limit": 1,
}  # fmt: skip
_RECALL = "() => localStorage.getItem('studio-scene') || ''"
_REMEMBER = (
    "(id) => { history.replaceState(null, '', '/create?scene=' + id); localStorage.setItem('studio-scene', id); }"
)
_HISTORY = 12


@page("create", "Create", order=3)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> Any:
    form = Form(studio)
    screen = _Screen(studio, form, Forms(studio.home / "scenes", Scene))
    scene_id, job_id = gr.Textbox(visible=False), gr.Textbox(visible=False)
    shown, told = gr.State(_HISTORY), gr.State(Problems())
    plain_html('<div class="s-head"><h1>Create</h1><a href="/create?scene=new">Start anew</a></div>')
    with gr.Row(equal_height=False, elem_classes="s-create"):
        with gr.Column(min_width=320, scale=5, elem_classes="s-step"):
            chips, drop, press = _lay_out(form)
        with gr.Column(min_width=320, scale=6, elem_classes="s-beside"):
            pictures = live_html(elem_id="pictures")
    plain_html('<h2 id="history-title">Drawn before</h2>')
    history = live_html(elem_id="history")
    live.watch(screen.chips, [chips], [scene_id])
    live.watch(screen.pictures, [pictures, history], [job_id, shown])
    private: dict[str, Any] = {"api_visibility": "private"}
    loaded = demo.load(screen.load, scene_id, [scene_id, job_id, *form.outputs()], js=_RECALL, **_PRIVATE)
    loaded.then(None, scene_id, None, js=_REMEMBER, **private)
    _wire(screen, scene_id, chips, drop)
    pressed = press.click(
        screen.press, [scene_id, shown, *form.values()], [told, job_id, pictures, history, *form.outputs()], **_PRIVATE
    )
    # An event of its own: Gradio's browser side may take two answers that come together in the wrong order, and what
    # the fields' last change said would then stand in the refusal's place.
    pressed.then(screen.refused, [scene_id, told], form.said(), **_PRIVATE)
    pictures.click(screen.ask, [job_id, shown], [pictures, history], **_PRIVATE)
    history.click(screen.more, [job_id, shown], [shown, pictures, history], **_PRIVATE)
    return loaded


def _lay_out(form: Form) -> tuple[Any, Any, Any]:
    """The form; gives the parts that are not the scene's own: chips, where recipes are dropped, the button."""
    form.fields["prompt"] = gr.Textbox(
        label="What to draw", placeholder="a photo of …", lines=3, max_length=LONGEST, elem_id="prompt"
    )
    form.note("prompt")
    chips = live_html(elem_id="chips")
    form.lay_out_used()
    form.lay_out_numbers()
    press = gr.Button("Draw", variant="primary", elem_id="draw", size="lg")
    form.note("")
    with gr.Accordion("Places of subjects", open=False, elem_id="places-box"):
        form.lay_out_places()
    with gr.Accordion("More control", open=False, elem_id="more"):
        form.lay_out_more()
    with gr.Accordion("Settings of a picture", open=False, elem_id="recipe-box"):
        plain_html("<p class='s-hint'>A PNG that was drawn here holds its settings: drop it to use them.</p>")
        drop = gr.File(label="Drop a PNG here", elem_id="recipe", height=110)
    form.note("recipe")
    return chips, drop, press


class _Screen:
    """What happens on the page."""

    def __init__(self, studio: Studio, form: Form, kept: Forms[Scene]) -> None:
        self.studio, self.form, self.kept = studio, form, kept
        self.courses = Courses(studio.queue)

    # --- what follows the queue ---------------------------------------------------------------------------

    def chips(self, id: str) -> list[str]:
        return [chips_markup(self.studio, self._scene(id))]

    def pictures(self, job_id: str, shown: int) -> list[str]:
        job, shown = self._job(job_id), min(max(int(shown), _HISTORY), 1000)
        notes = self.courses.of(job.id).notes if job is not None else []
        drawn = sorted(self.studio.queue.list_jobs(kind="sample", limit=shown + 1), key=lambda one: -one.seq)
        return [pictures_markup(job, notes), history_markup(drawn[:shown], len(drawn) > shown)]

    def _scene(self, id: str) -> Scene:
        return self.kept.get(id) if id else self.kept.new()

    def _job(self, id: str) -> Job | None:
        try:
            return self.studio.queue.get_job(id) if id else None
        except StudioError:
            return None

    # --- coming -------------------------------------------------------------------------------------------

    def load(self, recalled: str, request: gr.Request) -> list[Any]:
        """The scene of the address, or a new one filled from what the address names, or the one of last time."""
        asked = dict(request.query_params)
        told: list[str] = []
        fills = {name: asked[name] for name in ("adapters", "job") if name in asked}
        scene = self._kept(asked.get("scene", "" if fills else recalled))
        if fills:
            with self.kept.changing(scene.id) as scene:
                told = self._filled(scene, fills)
        return [scene.id, scene.job, *self.form.show(scene, told=told)]

    def _kept(self, id: str) -> Scene:
        try:
            return self.kept.get(id)
        except StudioError:
            return self.kept.new()

    def _filled(self, scene: Scene, fills: dict[str, str]) -> list[str]:
        try:
            if "job" in fills:
                return scene_sources.take_job(self.studio, scene, fills["job"])
            return scene_sources.take_adapters(self.studio, scene, fills["adapters"].split(",")[:20])
        except StudioError as error:
            return [str(error)]

    # --- changing -----------------------------------------------------------------------------------------

    def change(self, id: str, values: tuple[Any, ...], change: Callable[[Scene], Any]) -> Scene:
        """The fields as they are on the page, and a change, into the scene."""
        with self.kept.changing(id) as scene:
            self.form.put(scene, values)
            change(scene)
        return scene

    def filled_in(self, id: str, *values: Any) -> list[Any]:
        """Typed, or filled in by us: then nothing is new, and what was said of the fields stays."""
        if id and self.kept.get(id) != (scene := self.change(id, values, lambda scene: None)):
            return self.form.told(scene, Problems())
        return [gr.skip()] * len(self.form.said())

    def chosen(self, id: str, *values: Any) -> list[Any]:
        """A choice that other parts depend on."""
        scene = self.change(id, values, lambda scene: None)
        return [chips_markup(self.studio, scene), *self.form.show(scene)]

    def rebased(self, id: str, *values: Any) -> list[Any]:
        """Another base has other sizes."""
        scene = self.change(id, values, lambda scene: setattr(scene, "size", ""))
        return [chips_markup(self.studio, scene), *self.form.show(scene)]

    def use(self, event: gr.EventData, id: str, *values: Any) -> list[Any]:
        problem = ""

        def toggled(scene: Scene) -> None:
            nonlocal problem
            before = scenes.base_of(self.studio, scene)
            problem = scenes.toggle(self.studio, scene, details(event).get("adapter", ""))
            if scenes.base_of(self.studio, scene) != before:
                scene.size = ""

        scene = self.change(id, values, toggled)
        return [chips_markup(self.studio, scene), *self.form.show(scene, Problems({"uses": problem}))]

    def strengthen(self, id: str, event: gr.EventData) -> list[Any]:
        told = details(event)
        with self.kept.changing(id) as scene:
            problem = scenes.set_strength(scene, told.get("adapter", ""), told.get("value", ""))
        return self.form.told(scene, Problems({"uses": problem}))

    def place(self, id: str, event: gr.EventData) -> list[Any]:
        with self.kept.changing(id) as scene:
            take_regions(scene, event)
        return self.form.told(scene, Problems())

    def dropped(self, id: str, file: str | None) -> list[Any]:
        """A picture's recipe into the form; where it has none, the form stays as it is."""
        try:
            (path,) = uploads.received(self.studio.home, [file] if file else [])
            with self.kept.changing(id) as scene:
                told = scene_sources.take_picture(self.studio, scene, path)
        except (StudioError, ValueError) as error:
            told, scene = [str(error) if isinstance(error, StudioError) else "Drop a PNG file."], self._scene(id)
        return [None, chips_markup(self.studio, scene), *self.form.show(scene, told=told)]

    # --- drawing ------------------------------------------------------------------------------------------

    def press(self, id: str, shown: int, *values: Any) -> list[Any]:
        problems = Problems()

        def started(scene: Scene) -> None:
            nonlocal problems
            problems = scenes.start(self.studio, scene)

        scene = self.change(id, values, started)
        return [problems, scene.job, *self.pictures(scene.job, shown), *self.form.show(scene, problems)]

    def refused(self, id: str, problems: Problems) -> list[Any]:
        """What the press has said, once more."""
        return self.form.told(self._scene(id), problems) if problems.fields else [gr.skip()] * len(self.form.said())

    def ask(self, job_id: str, shown: int, event: gr.EventData) -> list[str]:
        """Stop, resume, try again."""
        action = details(event).get("action")
        try:
            if action == "retry":
                self.studio.queue.retry(job_id)
            elif action in ("cancel", "resume"):
                self.studio.queue.send(job_id, action)
            workers.ensure(self.studio.queue)
        except StudioError:  # it has ended meanwhile: what is drawn now says how
            pass
        return self.pictures(job_id, shown)

    def more(self, job_id: str, shown: int) -> list[Any]:
        return [shown + _HISTORY, *self.pictures(job_id, shown + _HISTORY)]


def _wire(screen: _Screen, scene_id: Any, chips: Any, drop: Any) -> None:
    form = screen.form
    values, outputs = [scene_id, *form.values()], [chips, *form.outputs()]

    texts = [form.fields[name].change for name in ("prompt", "count", "seed", "locked", "negative", "steps",
                                                   "guidance", "scheduler")]  # fmt: skip
    gr.on(texts, screen.filled_in, values, form.said(), trigger_mode="always_last", **_PRIVATE)
    gr.on(
        [form.fields[name].input for name in ("size", "places")],
        screen.chosen,
        values,
        outputs,
        trigger_mode="multiple",
        **_PRIVATE,
    )
    form.fields["base"].input(screen.rebased, values, outputs, **_PRIVATE)
    # "multiple": Gradio's usual "once" drops what comes while the one before is under way
    every: dict[str, Any] = {"trigger_mode": "multiple", **_PRIVATE}
    chips.click(screen.use, values, outputs, **every)
    form.used.click(screen.use, values, outputs, **every)
    form.used.input(screen.strengthen, scene_id, form.said(), **every)
    form.canvas.input(screen.place, scene_id, form.said(), **every)
    drop.upload(screen.dropped, [scene_id, drop], [drop, *outputs], **_PRIVATE)
