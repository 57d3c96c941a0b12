"""The top of every page: the menu, and the strip that tells what is going on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studio.store.states import ACTIVE, WAITING
from ui.components import words
from ui.components.jobs import address
from ui.components.live import Live
from ui.components.markup import esc, plain_html
from ui.studio import Studio

if TYPE_CHECKING:
    from ui.pages import Page


def top(studio: Studio, live: Live, page: Page, pages: Sequence[Page]) -> None:
    plain_html(_menu(page, pages), elem_id="menu")
    strip = plain_html(elem_id="strip")
    live.watch(lambda: [strip_markup(studio)], [strip])


def _menu(current: Page, pages: Sequence[Page]) -> str:
    links = "".join(
        f'<a href="/{page.path}"{_current(page is current)}>{esc(page.title)}</a>' for page in pages if page.in_menu
    )
    mark = '<span class="s-mark" aria-hidden="true"></span>'
    return f'<nav class="s-menu" aria-label="Pages"><a class="s-brand" href="/">{mark}Spectral Studio</a>{links}</nav>'


def _current(is_it: bool) -> str:
    return ' aria-current="page"' if is_it else ""


def strip_markup(studio: Studio) -> str:
    """What runs now, in a line that leads to it; what waits; why nobody works, if so."""
    if studio.trouble:
        return f'<div class="s-strip s-bad" role="status">{esc(studio.trouble)}</div>'
    active = studio.queue.list_jobs(ACTIVE)
    waiting = len(studio.queue.list_jobs(WAITING))
    if not active:
        text = f"{waiting} waiting; a worker is starting" if waiting else "Nothing is running."
        return f'<div class="s-strip" role="status"><span>{text}</span></div>'
    job = active[0]
    share = words.share(job)
    bar = f'<progress max="1" value="{share or 0:.4f}" aria-label="progress"></progress>' if share is not None else ""
    rest = " · ".join(filter(None, (words.stage(job), words.left(job), f"{waiting} waiting" if waiting else "")))
    return (
        f'<div class="s-strip" role="status"><a href="{address(job)}"><b>{esc(job.title)}</b> {esc(rest)}</a>{bar}'
        "</div>"
    )
