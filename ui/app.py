"""The pages put together: every module of ui.pages registers one, and each gets the same frame."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import gradio as gr

import ui.pages
from ui import api
from ui.components import frame
from ui.components.live import Live
from ui.pages import PAGES, Page
from ui.studio import Studio

TITLE = "Spectral Studio"


def pages() -> list[Page]:
    """All pages by their order; importing their modules registers them."""
    for module in iter_modules(ui.pages.__path__, f"{ui.pages.__name__}."):
        import_module(module.name)
    return sorted(PAGES, key=lambda page: page.order)


def build(studio: Studio) -> gr.Blocks:
    """The application. The first page is the root; the others have addresses of their own."""
    found = pages()
    first, *others = found
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as demo:
        _fill(demo, first, found, studio)
        api.add_to(demo, studio)
    for page in others:
        with demo.route(page.title, f"/{page.path}", show_in_navbar=page.in_menu):
            _fill(demo, page, found, studio)
    demo.queue(api_open=False, default_concurrency_limit=8, max_size=256)
    return demo


def _fill(demo: gr.Blocks, page: Page, found: list[Page], studio: Studio) -> None:
    live = Live(studio, demo)
    frame.top(studio, live, page, found)
    with gr.Column(elem_classes="s-page"):
        after_load = page.build(studio, live, demo)
    live.start(after_load=after_load)
