"""The library: all adapters as cards, found by words and tags, several at a time if need be, and the trash."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from adapters.errors import StudioError
from ui import adding
from ui.components import library_view
from ui.components.library_view import View
from ui.components.live import Live
from ui.components.markup import details, live_html, message, plain_html
from ui.pages import page
from ui.studio import Studio

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
# One after the other: two picks that follow each other quickly must be answered in their order.
_IN_TURN: dict[str, Any] = {**_PRIVATE, "trigger_mode": "multiple", "concurrency_limit": 1}
_ID = re.compile(r"\b[0-9a-f]{64}\b")


@page("library", "Library", order=6)
def build(studio: Studio, live: Live, demo: gr.Blocks) -> Any:
    view = gr.State(View())
    sent: Any
    with gr.Row(elem_classes="s-top"):
        plain_html("<h1>Library</h1>")
        sent = gr.UploadButton("Import files", file_count="multiple", elem_id="import", size="sm", scale=0)
    text = gr.Textbox(label="Search", placeholder="a name, a word, a tag, a method", elem_id="library-search")
    scripts = {"told": "", "tools": "", "cards": library_view.SCRIPT, "picked": ""}
    parts = [live_html(elem_id=f"library-{name}", script=script) for name, script in scripts.items()]
    drawn = parts[1:]
    live.watch(lambda view: _drawn(studio, view), drawn, [view])

    def acted(view: View, event: gr.EventData) -> list[Any]:
        return _after(studio, view, lambda: act(studio, view, details(event)))

    def sifted(view: View, text: str) -> list[Any]:
        if text[:200] == view.text:
            return [view, *[gr.skip()] * len(parts)]
        view = replace(view.unpicked(), text=text[:200], count=library_view.STEP)
        return [view, gr.skip(), *_drawn(studio, view)]

    def picked(view: View, event: gr.EventData) -> list[Any]:
        view = pick(view, details(event))
        return [view, library_view.picked_bar(studio.library, view)]

    def received(view: View, files: list[str] | None) -> list[Any]:
        return [None, *_after(studio, view, lambda: (view, _taken(studio, files or [])))]

    for part in parts:
        part.click(acted, view, [view, *parts], **_PRIVATE)
    parts[2].input(picked, view, [view, parts[3]], **_IN_TURN)
    text.change(sifted, [view, text], [view, *parts], trigger_mode="always_last", **_PRIVATE)
    sent.upload(received, [view, sent], [sent, view, *parts], **{**_PRIVATE, "show_progress": "minimal"})
    return demo.load(_asked, None, [view, text], **_PRIVATE)


def _asked(request: gr.Request) -> list[Any]:
    """The view that the address tells."""
    told = request.query_params
    view = View(text=told.get("text", "")[:200], tag=told.get("tag", "")[:200], trashed="trash" in told)
    return [view, view.text]


def _drawn(studio: Studio, view: View) -> list[str]:
    return [
        library_view.tools(studio.library, view),
        library_view.cards(studio, view),
        library_view.picked_bar(studio.library, view),
    ]


def _after(studio: Studio, view: View, change: Callable[[], tuple[View, str]]) -> list[Any]:
    """The page after a change; where it is refused, as it was, and why."""
    try:
        view, told = change()
    except StudioError as error:
        told = message(str(error))
    return [view, told, *_drawn(studio, view)]


def pick(view: View, told: dict[str, str]) -> View:
    """With those cards picked that the browser tells."""
    return replace(view, picked=tuple(_ID.findall(told.get("picked", ""))))


def act(studio: Studio, view: View, told: dict[str, str]) -> tuple[View, str]:
    """What a button says: the view after it, and what is said of it."""
    library, fresh = studio.library, view.unpicked()
    match told.get("action"):
        case "tag":
            tag = told.get("tag", "")
            return replace(fresh, tag="" if tag == view.tag else tag), ""
        case "trash-view":
            return replace(fresh, trashed=not view.trashed, tag=""), ""
        case "more":
            return replace(view, count=view.count + library_view.STEP), ""
        case "none" | "keep":
            return fresh, ""
        case "trash-picked":
            return fresh, library_view.undo([library.trash(id) for id in view.picked])
        case "restore":
            return fresh, _restored(studio, told.get("ids", "").split(","))
        case "restore-picked":
            return fresh, _restored(studio, view.picked)
        case "empty":
            return fresh, library_view.sure(len(library.list_adapters(trashed=True)))
        case "empty-yes":
            return replace(fresh, trashed=False), _emptied(studio)
        case _:
            return view, ""


def _restored(studio: Studio, ids: Sequence[str]) -> str:
    names = [studio.library.restore(id).name for id in ids]
    return message(f"{', '.join(names)}: back in the library.", "good")


def _emptied(studio: Studio) -> str:
    gone = studio.library.empty_trash()
    for entry in gone:
        studio.exports.forget(entry.id)
    return message(f"Deleted for good: {', '.join(entry.name for entry in gone)}." if gone else "", "good")


def _taken(studio: Studio, files: Sequence[str]) -> str:
    """What became of the files that were sent."""
    ids, refused = adding.add(studio, files)
    names = ", ".join(studio.library.get_adapter(id).name for id in ids)
    return message(f"In the library: {names}." if ids else "", "good") + message("\n".join(refused))
