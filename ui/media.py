"""Pictures and files for the browser, by ids of ours: never by a path that somebody sends."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

from adapters.errors import StudioError
from studio.paths import picture_name, slug
from studio.store import Job
from ui.studio import Studio

_SAMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.png")
_CACHED = {"cache-control": "private, max-age=31536000, immutable"}
_FRESH = {"cache-control": "private, no-cache"}
ADAPTER = "adapter.safetensors"
REPORT = "adapter.report.png"
"""A fusion's heat map (studio.fusing)."""


def add_to(app: FastAPI, studio: Studio) -> None:
    """The routes under /media."""

    @app.get("/media/draft/{draft}/{picture}")
    def draft_picture(draft: str, picture: str) -> FileResponse:
        try:
            return _file(studio.drafts.thumbnail(draft, picture), _CACHED)
        except StudioError as error:
            raise HTTPException(404) from error

    @app.get("/media/job/{job}/sample/{name}")
    def sample(job: str, name: str) -> FileResponse:
        if not _SAMPLE.fullmatch(name):
            raise HTTPException(404)
        return _file(_job(job).run / "samples" / name, _FRESH)

    @app.get("/media/job/{job}/reference/{number}")
    def reference(job: str, number: int) -> FileResponse:
        pictures = references(_job(job))
        if not 0 <= number < len(pictures):
            raise HTTPException(404)
        return _file(pictures[number], _CACHED)

    @app.get("/media/job/{job}/adapter")
    def adapter(job: str) -> FileResponse:
        found = _job(job)
        return _file(found.run / ADAPTER, _FRESH, f"{slug(found.title)}.safetensors")

    @app.get("/media/job/{job}/picture/{number}")
    def picture(job: str, number: int) -> FileResponse:
        if not 0 <= number < 10_000:
            raise HTTPException(404)
        return _file(_job(job).run / picture_name(number), _CACHED)

    @app.get("/media/job/{job}/report")
    def report(job: str) -> FileResponse:
        return _file(_job(job).run / REPORT, _FRESH)

    def _job(id: str) -> Job:
        try:
            return studio.queue.get_job(id)
        except StudioError as error:
            raise HTTPException(404) from error


def references(job: Job) -> list[Path]:
    """The pictures that a job learns from, those that a browser can show."""
    if job.kind != "train":
        return []
    folder = Path(str(job.config["data"]["folder"]))
    shown = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif")
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in shown and ".mask." not in path.name)


def _file(path: Path, headers: dict[str, str], download: str | None = None) -> FileResponse:
    if not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, headers=headers, filename=download)
