"""Create's form: its components, and what each shows of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from trainers.places import LARGEST
from trainers.schedulers import SCHEDULERS
from ui import scenes
from ui.components.markup import esc, live_html, message, plain_html
from ui.components.regions import regions_html, regions_markup
from ui.components.scene_view import STRENGTHS, used_markup
from ui.scenes import LONGEST, Scene
from ui.studio import Studio
from ui.subject import Problems

FIELDS = (
    "prompt", "count", "seed", "locked", "size", "base", "negative", "steps", "guidance", "scheduler", "places",
)  # fmt: skip
NOTES = (
    "prompt", "uses", "count", "seed", "size", "base", "negative", "steps", "guidance", "scheduler", "regions",
    "recipe", "",
)  # fmt: skip
_PLACES = {
    "whole": "Anywhere",
    "found": "Found while it draws",
    "drawn": "Where I draw it",
}
_LONGEST_NUMBER = 30


class Form:
    """`fields` by FIELDS, `notes` (what is wrong, beside its field) by NOTES, the `used` adapters, and the `canvas`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.fields: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.used: Any = None
        self.canvas: Any = None

    def values(self) -> list[Any]:
        return [self.fields[name] for name in FIELDS]

    def outputs(self) -> list[Any]:
        """What `show` fills."""
        return [*self.values(), self.used, self.canvas, *self.said()]

    def said(self) -> list[Any]:
        """What `told` fills."""
        return [self.notes[name] for name in NOTES]

    # --- laying out ---------------------------------------------------------------------------------------

    def note(self, name: str) -> None:
        self.notes[name] = plain_html(elem_id=f"{name or 'create'}-problem")

    def number(self, name: str, label: str) -> None:
        """A number with its message, in a column of its own."""
        with gr.Column(min_width=120):
            self.fields[name] = gr.Number(label=label, elem_id=name)
            self.note(name)

    def lay_out_numbers(self) -> None:
        with gr.Row(equal_height=False):
            self.number("count", "Pictures")
            with gr.Column(min_width=150):
                self.fields["seed"] = gr.Textbox(label="Seed", elem_id="seed", max_length=_LONGEST_NUMBER)
                self.fields["locked"] = gr.Checkbox(label="Keep this seed", elem_id="locked")
                self.note("seed")
            with gr.Column(min_width=150):
                # custom values: a recipe's, and whatever sizes somebody needs
                self.fields["size"] = gr.Dropdown(label="Size", elem_id="size", allow_custom_value=True)
                self.note("size")
        choices = [(name, base) for base, name in self.studio.bases.items()]
        self.fields["base"] = gr.Dropdown(choices, label="Base", elem_id="base", allow_custom_value=False)
        self.note("base")

    def lay_out_places(self) -> None:
        choices = [(text, place) for place, text in _PLACES.items()]
        self.fields["places"] = gr.Radio(choices, label="Where each subject is", elem_id="places")
        self.canvas = regions_html(elem_id="regions")
        self.note("regions")

    def lay_out_more(self) -> None:
        self.fields["negative"] = gr.Textbox(
            label="What not to draw", elem_id="negative", lines=2, max_length=LONGEST
        )  # fmt: skip
        self.note("negative")
        with gr.Row(equal_height=False):
            self.number("steps", "Steps")
            self.number("guidance", "Guidance")
            with gr.Column(min_width=150):
                self.fields["scheduler"] = gr.Dropdown(list(SCHEDULERS), label="Sampler", elem_id="scheduler")
                self.note("scheduler")

    def lay_out_used(self) -> None:
        self.used = live_html(elem_id="used", script=STRENGTHS)
        self.note("uses")

    # --- what it shows ------------------------------------------------------------------------------------

    def put(self, scene: Scene, values: Sequence[Any]) -> None:
        """The fields' values into the scene; they may come from anybody."""
        given = dict(zip(FIELDS, values, strict=True))
        for name in ("prompt", "negative"):
            setattr(scene, name, str(given[name] or "")[:LONGEST])
        for name in ("seed", "size"):
            setattr(scene, name, str(given[name] or "")[:_LONGEST_NUMBER])
        for name in ("count", "steps", "guidance"):
            value = given[name]
            setattr(scene, name, float(value) if isinstance(value, (int, float)) else None)
        scene.locked = bool(given["locked"])
        if given["base"] in self.studio.bases:
            scene.base = given["base"]
        if given["scheduler"] in SCHEDULERS:
            scene.scheduler = given["scheduler"]
        if given["places"] in _PLACES:
            scene.places = given["places"]
        scene.regions = scene.regions[:LARGEST]

    def show(self, scene: Scene, problems: Problems | None = None, told: Sequence[str] = ()) -> list[Any]:
        """A value for each of `outputs`; `told` are sentences on what could not be taken over."""
        base = scenes.base_of(self.studio, scene)
        own = any(entry.base for entry in scenes.used(self.studio, scene))
        fields = {name: getattr(scene, name) for name in FIELDS}
        fields["size"] = gr.Dropdown(scenes.sizes(base), value=scene.size or scenes.sizes(base)[0])
        fields["base"] = gr.Dropdown(value=base if base in self.studio.bases else scene.base, interactive=not own)
        found = problems or Problems()
        if told:
            found = Problems({**found.fields, "recipe": "\n".join(told)})
        return [
            *(fields[name] for name in FIELDS),
            used_markup(self.studio, scene),
            self.drawn(scene),
            *self.told(scene, found),
        ]

    def drawn(self, scene: Scene) -> str:
        if scene.places != "drawn":
            return ""
        phrases = [scenes.phrase(self.studio, entry) for entry in scenes.used(self.studio, scene)]
        return regions_markup(scene.regions, scenes.shape(self.studio, scene), list(filter(None, phrases)))

    def told(self, scene: Scene, problems: Problems) -> list[str]:
        """A message for each of NOTES; where nothing is wrong with the prompt, whom it does not speak of."""
        said = [message(problems.of(name)) for name in NOTES]
        if not said[0] and (hint := scenes.unsaid(self.studio, scene)):
            said[0] = f'<p class="s-hint">{esc(hint)}</p>'
        return said
