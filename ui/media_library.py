"""The library's pictures and files for the browser, by ids alone."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

from adapters.errors import StudioError
from studio.paths import slug
from ui.studio import Studio

_FRESH = {"cache-control": "private, no-cache"}
_CACHED = {"cache-control": "private, max-age=86400"}
OWN = "studio"
"""The format that the library itself keeps."""


def add_to(app: FastAPI, studio: Studio) -> None:
    """The routes under /media/library."""

    @app.get("/media/library/{id}/thumbnail")
    def thumbnail(id: str) -> Response:
        try:
            picture = studio.library.thumbnail(id)
        except StudioError as error:
            raise HTTPException(404) from error
        if picture is None:
            raise HTTPException(404)
        return Response(picture, media_type="image/jpeg", headers=_CACHED)

    @app.get("/media/library/{id}/file/{form}")
    def file(id: str, form: str) -> FileResponse:
        """The adapter as it lies there (`studio`), or in a format that it has been exported to."""
        try:
            path = studio.library.path_of(id) if form == OWN else studio.exports.file(id, form)
            name = slug(studio.library.get_adapter(id).name)
        except StudioError as error:
            raise HTTPException(404) from error
        ending = "" if form == OWN else f"-{form}"
        return FileResponse(path, headers=_FRESH, filename=f"{name}{ending}.safetensors")
