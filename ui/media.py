"""Pictures and files for the browser, by ids of ours: never by a path that somebody sends."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from PIL import Image

from adapters.atomic import atomic_path
from adapters.errors import StudioError
from studio.paths import picture_name, slug
from studio.store import Job, SampleRequest
from ui.studio import Studio

_SAMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.png")
_CACHED = {"cache-control": "private, max-age=31536000, immutable"}
_FRESH = {"cache-control": "private, no-cache"}
_SMALL = 512
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

    @app.get("/media/job/{job}/picture/{number}")
    def picture(job: str, number: int) -> FileResponse:
        return _file(_picture(_job(job), number), _CACHED)

    @app.get("/media/job/{job}/picture/{number}/small")
    def small_picture(job: str, number: int) -> FileResponse:
        found = _job(job)
        small = studio.home / "web" / "small" / f"{found.id}-{number}.webp"
        if not small.is_file():
            _shrink(_picture(found, number), small)
        return _file(small, _CACHED)

    @app.get("/media/job/{job}/report")
    def report(job: str) -> FileResponse:
        return _file(_job(job).run / REPORT, _FRESH)

    @app.get("/media/job/{job}/adapter")
    def adapter(job: str) -> FileResponse:
        found = _job(job)
        return _file(found.run / ADAPTER, _FRESH, f"{slug(found.title)}.safetensors")

    def _job(id: str) -> Job:
        try:
            return studio.queue.get_job(id)
        except StudioError as error:
            raise HTTPException(404) from error


def drawn_pictures(job: Job) -> list[int]:
    """The numbers of a job's pictures that are there."""
    if not isinstance(job.request, SampleRequest):
        return []
    return [number for number in range(len(job.request.drawings)) if (job.run / picture_name(number)).is_file()]


def _picture(job: Job, number: int) -> Path:
    path = job.run / picture_name(number)
    if number < 0 or not path.is_file():
        raise HTTPException(404)
    return path


def _shrink(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        picture.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS)
        with atomic_path(target) as temporary:
            picture.save(temporary, format="WEBP", quality=85)


def references(job: Job) -> list[Path]:
    """The pictures that a job learns from, those that a browser can show."""
    if not job.config:
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
