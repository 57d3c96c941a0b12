"""What the form of a new subject shows, part by part, drawn from the draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from adapters.errors import StudioError
from ui import subject
from ui.components.knobs import knobs_markup
from ui.components.markup import esc, message
from ui.components.pictures import pictures_markup
from ui.components.presets import presets_markup
from ui.drafts import Draft
from ui.studio import Studio
from ui.subject import Problems

PARTS = ("pictures", "trigger_note", "class_note", "presets", "knobs", "yaml", "yaml_note", "command", "review")
_WORST = "Fill in what is marked above; nothing is lost."


class Form:
    """`parts` are the components, by the names of PARTS."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.parts: dict[str, Any] = {}

    def outputs(self) -> list[Any]:
        return [self.parts[name] for name in PARTS]

    def change(self, id: str, change: Callable[[Draft], Any], parts: Sequence[str] = PARTS) -> list[Any]:
        """Changes the draft and redraws those parts; `change` may return sentences on files that were refused."""
        if not id:  # the page is still coming; what was filled in meanwhile is taken when it is there
            return self.only()
        try:
            with self.studio.drafts.changing(id) as draft:
                told = change(draft)
        except StudioError as error:
            return self.only(review=message(str(error)))
        refused: list[str] = told if isinstance(told, list) else []
        return self.show(draft, parts, refused)

    def only(self, **values: str) -> list[Any]:
        return [values.get(name, gr.skip()) for name in PARTS]

    def show(
        self, draft: Draft, parts: Sequence[str] = PARTS, refused: Sequence[str] = (), problems: Problems | None = None
    ) -> list[Any]:
        """A value for each part, or a skip. With `problems`, a start was refused: they are said beside their fields."""
        plan, wrong = subject.plan(self.studio, draft) if set(parts) - {"pictures"} else (None, Problems())
        lacking = subject.missing(draft).fields if draft.refused else {}
        found = Problems({**wrong.fields, **lacking, **(problems.fields if problems is not None else {})})
        draw: dict[str, Callable[[], Any]] = {
            "pictures": lambda: pictures_markup(self.studio.drafts, draft, list(refused), found.of("pictures")),
            "trigger_note": lambda: self._trigger(draft, found),
            "class_note": lambda: message(found.of("class_word"), elem_id="class-problem"),
            "presets": lambda: self._presets(draft),
            "knobs": lambda: self._knobs(draft, found),
            "yaml": lambda: plan["yaml"] if plan is not None else gr.skip(),
            "yaml_note": lambda: "",
            "command": lambda: plan["command"] if plan is not None else gr.skip(),
            "review": lambda: self._review(draft, plan, found, draft.refused),
        }
        return [draw[name]() if name in parts else gr.skip() for name in PARTS]

    def _trigger(self, draft: Draft, found: Problems) -> str:
        if problem := found.of("trigger"):
            return message(problem, elem_id="trigger-problem")
        note = subject.trigger_note(self.studio, draft)
        return f'<p class="s-hint">{esc(note)}</p>' if note else ""

    def _presets(self, draft: Draft) -> str:
        try:
            cards = self.studio.clerk.ask("presets", base=draft.base, measured=subject.measured(self.studio))
        except StudioError as error:
            return message(str(error))
        return presets_markup(cards, draft.preset)

    def _knobs(self, draft: Draft, found: Problems) -> str:
        method = draft.settings.get("adapter.method", "lora")
        try:
            known = self.studio.clerk.ask("form", preset=draft.preset, base=draft.base, method=method)
        except StudioError as error:
            return message(str(error))
        return knobs_markup(known, draft.settings, found.fields)

    def set_knob(self, draft: Draft, key: str, value: str | None) -> None:
        """Keeps a setting, unless it is what the preset gives anyway."""
        if not key or value is None:
            return
        method = draft.settings.get("adapter.method", "lora")
        known = self.studio.clerk.ask("form", preset=draft.preset, base=draft.base, method=method)
        standing = {knob["key"]: knob["standing"] for knob in known}
        usual = "lora" if key == "adapter.method" else standing.get(key)
        if value.strip() == usual:
            draft.settings.pop(key, None)
        else:
            draft.settings[key] = value.strip()[:2000] or "''"

    def _review(self, draft: Draft, plan: dict[str, Any] | None, found: Problems, refused: bool) -> str:
        """What will happen, in plain sentences; after a refused start, that something is missing."""
        told = message(found.of("") or (_WORST if refused and found.fields else ""), elem_id="start-problem")
        wrong = [text for key, text in found.fields.items() if key not in ("", "pictures", "trigger", "class_word")]
        if wrong:
            told += message(f"Under “More control”: {' '.join(wrong)}")
        if plan is None:
            return told
        ready = not subject.missing(draft).fields
        sentences = "".join(f"<li>{esc(sentence)}</li>" for sentence in plan["sentences"])
        return told + (f'<ul class="s-review">{sentences}</ul>' if ready else _not_yet(draft))


def _not_yet(draft: Draft) -> str:
    left = {"pictures": "pictures", "class_word": "what it is", "trigger": "a word for it"}
    names = [left[name] for name in subject.missing(draft).fields if name in left]
    return f'<p class="s-quiet">Still missing: {esc(", ".join(names))}.</p>'
