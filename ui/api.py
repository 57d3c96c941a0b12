"""The deliberate API: few functions, and nothing else that a page has is one.

They are at /gradio_api/call/<name>, for gradio_client, and with `studio ui --mcp` for language models.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gradio as gr

from adapters.errors import StudioError, UserInputError
from studio.store import Job
from studio.store.jobs import new_id
from ui import media, scenes, subject, uploads
from ui.combination import Combination, Part
from ui.combining import Combining
from ui.scenes import LONGEST, Scene
from ui.studio import Studio

_LISTED = 100


def add_to(demo: gr.Blocks, studio: Studio) -> None:
    """Registers the functions."""
    combining = Combining(studio)

    def train(
        pictures: list[gr.FileData], trigger: str, class_word: str, preset: str = "balanced", base: str = "embedded"
    ) -> str:
        """Teach a base the subject in the pictures (uploaded files); returns the job's id."""
        with _told():
            files = uploads.received(studio.home, [_path(file) for file in pictures])
            return _train(studio, files, trigger, class_word, preset, base)

    def sample(
        adapters: list[str], prompt: str, count: int = 4, seed: int = 0, strengths: list[float] | None = None,
        size: str = "",
    ) -> str:  # fmt: skip
        """Draw with adapters of the library (their ids; none: the built-in base); returns the job's id.

        `strengths`: one for each adapter, 1 where left out. `size`: WIDTHxHEIGHT, the base's own where left out.
        """
        with _told():
            return _sample(studio, adapters, strengths or [1.0] * len(adapters), prompt, count, seed, size)

    def fuse(
        adapters: list[str], weights: list[float] | None = None, way: str = "", options: dict[str, Any] | None = None
    ) -> str:
        """Make one adapter of several of the library (their ids); returns the job's id.

        `weights`: how strongly each acts, 1 where left out. `way`: how they are joined, least-squares where left out.
        `options`: settings of the way.
        """
        with _told():
            return _fuse(combining, adapters, weights or [1.0] * len(adapters), way, options or {})

    def status(job: str) -> dict[str, Any]:
        """How far a job is: its state, step, steps, loss, failure, and where its adapter or its pictures can be had.

        Of a fusion that is done also the verdict on it, and the adapter's id in the library.
        """
        with _told():
            return _status(combining, studio.queue.get_job(job))

    def list_jobs() -> list[dict[str, Any]]:
        """The jobs: first those that are not over, in the queue's order, then the others, the last one first."""
        with _told():
            return [describe(job) for job in studio.queue.list_jobs(limit=_LISTED)]

    gr.api(train, api_name="train")
    gr.api(sample, api_name="sample")
    gr.api(fuse, api_name="fuse")
    gr.api(status, api_name="status")
    gr.api(list_jobs, api_name="list")


class _told:
    """Our errors as Gradio's, so that a client reads their sentences."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StudioError):
            raise gr.Error(str(error), print_exception=False) from error


def _path(file: Any) -> str:
    """Where a client says that its upload lies; Gradio does not check it for functions without components."""
    return str(file["path"] if isinstance(file, dict) else file.path)


def _train(studio: Studio, files: list[Path], trigger: str, class_word: str, preset: str, base: str) -> str:
    if base not in studio.bases:
        raise gr.Error(f"{base} is not offered here; these are: {', '.join(studio.bases)}.", print_exception=False)
    with studio.drafts.changing(studio.drafts.new().id) as draft:
        refused = uploads.take(studio.drafts, draft, files)
        draft.trigger, draft.class_word, draft.preset, draft.base = trigger, class_word, preset, base
    if refused:
        raise gr.Error("\n".join(refused), print_exception=False)
    id, problems = subject.start(studio, draft)
    if not id:
        raise gr.Error(" ".join(problems.fields.values()), print_exception=False)
    return id


def _sample(
    studio: Studio, adapters: list[str], strengths: list[float], prompt: str, count: int, seed: int, size: str
) -> str:
    if len(strengths) != len(adapters):
        raise UserInputError(f"{len(adapters)} adapters and {len(strengths)} strengths.", "Give one for each.")
    scene = Scene(id=new_id(), prompt=prompt[:LONGEST], count=count, seed=str(seed), size=size)
    for adapter, strength in zip(adapters, strengths, strict=True):
        entry = studio.library.get_adapter(adapter)
        problem = scenes.against(studio, scene, entry) or scenes.add(scene, entry.id, strength)
        if problem:
            raise UserInputError(f"{entry.name}: {problem}", "")
    asked, problems = scenes.request(studio, scene)
    if asked is None:
        raise UserInputError(" ".join(f"{name}: {text}" for name, text in problems.fields.items()), "")
    return scenes.draw(studio, asked)


def _fuse(combining: Combining, adapters: list[str], weights: list[float], way: str, options: dict[str, Any]) -> str:
    if len(weights) != len(adapters):
        raise UserInputError(f"{len(adapters)} adapters and {len(weights)} weights.", "Give one for each.")
    if not all(math.isfinite(weight) for weight in weights):
        raise UserInputError("A weight is no number.", "Give numbers such as 1 or 0.8.")
    ids = [combining.studio.library.get_adapter(adapter).id for adapter in adapters]
    parts = [Part(adapter=id, weight=weight) for id, weight in zip(ids, weights, strict=True)]
    told = {str(key): json.dumps(value) for key, value in options.items()}
    job, problems = combining.fuse(Combination(id=new_id(), parts=parts, how=way, options=told))
    if not job:
        raise UserInputError(" ".join(problems.fields.values()), "")
    return job


def _status(combining: Combining, job: Job) -> dict[str, Any]:
    told = describe(job)
    if job.kind == "fuse" and job.state == "done":
        entry = combining.made(job)
        told |= {"verdict": combining.report(job)["verdict"], "library": None if entry is None else entry.id}
    return told


def describe(job: Job) -> dict[str, Any]:
    """A job for a program."""
    done = job.progress
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": job.state,
        "step": done.step,
        "steps": done.steps,
        "loss": done.loss,
        "failure": None if job.failure is None else {"what": job.failure.what, "fix": job.failure.fix},
        "adapter": f"/media/job/{job.id}/adapter" if job.state == "done" and job.kind != "sample" else None,
        "pictures": [f"/media/job/{job.id}/picture/{number}" for number in media.drawn_pictures(job)],
    }
