"""One screen a module. A module makes its page known with `@page(…)`; ui.app finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.components.live import Live
from ui.studio import Studio

Build = Callable[[Studio, Live, gr.Blocks], Any]


@dataclass(frozen=True)
class Page:
    """A screen. `build` draws it inside its Blocks and may return the load event after which it can be drawn live."""

    path: str
    title: str
    order: int
    in_menu: bool
    build: Build


PAGES: list[Page] = []


def page(path: str, title: str, *, order: int, in_menu: bool = True) -> Callable[[Build], Build]:
    """Registers a page's `build`. `path` "" is the root."""

    def register(build: Build) -> Build:
        PAGES.append(Page(path, title, order, in_menu, build))
        return build

    return register
