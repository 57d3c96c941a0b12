"""What follows the queue on a page: one timer, one look at its revision, and only what has changed is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.studio import Studio

_SECONDS = 1.5
Render = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class _Watched:
    render: Render
    inputs: list[Any]
    outputs: list[Any]


@dataclass(frozen=True)
class Seen:
    """What a page has been sent: the queue's revision, and a digest of each output."""

    revision: int = -1
    digests: tuple[str, ...] = ()


class Live:
    """`watch` what is drawn from the queue, then `start` once, in the page's Blocks."""

    def __init__(self, studio: Studio, page: gr.Blocks) -> None:
        self.studio, self.page = studio, page
        self._watched: list[_Watched] = []

    def watch(self, render: Render, outputs: Sequence[Any], inputs: Sequence[Any] = ()) -> None:
        """`render(*inputs)` gives a value for each output; it is called when any job has changed."""
        self._watched.append(_Watched(render, list(inputs), list(outputs)))

    def start(self, *, after_load: Any = None) -> None:
        """Draws when the page has come (after `after_load`, the event that fills in its inputs), then as jobs move."""
        seen = gr.State(Seen())
        inputs = [component for watched in self._watched for component in watched.inputs]
        outputs = [component for watched in self._watched for component in watched.outputs]
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        begin = self.page.load if after_load is None else after_load.then
        begin(self._draw, [seen, *inputs], [seen, *outputs], **options)
        gr.Timer(_SECONDS).tick(self._tick, [seen, *inputs], [seen, *outputs], **options)

    def _draw(self, seen: Seen, *given: Any) -> list[Any]:
        return self._changes(Seen(self.studio.revision()), list(given))

    def _tick(self, seen: Seen, *given: Any) -> Any:
        revision = self.studio.revision()
        if revision == seen.revision:
            return gr.skip()
        return self._changes(Seen(revision, seen.digests), list(given))

    def _changes(self, seen: Seen, given: list[Any]) -> list[Any]:
        values: list[Any] = []
        for watched in self._watched:
            mine, given = given[: len(watched.inputs)], given[len(watched.inputs) :]
            values += watched.render(*mine)
        digests = tuple(_digest(value) for value in values)
        before = seen.digests or ("",) * len(digests)
        sent = [gr.skip() if new == old else value for value, new, old in zip(values, digests, before, strict=True)]
        return [Seen(seen.revision, digests), *sent]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
