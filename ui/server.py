"""`studio ui`: the application put together and served."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI

from adapters.errors import UserInputError
from studio.queue import Queue
from ui import media, media_library
from ui.app import build
from ui.gate import Gate, is_loopback
from ui.studio import Studio
from ui.theme import css, theme
from ui.uploads import uploads_dir

MAX_UPLOAD = "2gb"
"""A file beyond this is refused by Gradio itself: adapters of SDXL may have one. Every picture is judged on its own
(ui/uploads.py)."""


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    bases: tuple[str, ...] = ()
    """What may be taught besides the bases that are always offered."""
    mcp: bool = False


def create_app(studio: Studio, settings: Settings) -> FastAPI:
    """The web application. The gate is outermost: it stands before the media and before all that Gradio serves."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        studio.open()
        try:
            yield
        finally:
            studio.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    media.add_to(app, studio)
    media_library.add_to(app, studio)
    mounted = gr.mount_gradio_app(
        app,
        build(studio),
        path="/",
        theme=theme(),
        css=css(),
        footer_links=["api"],
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=settings.mcp,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    mounted.add_middleware(Gate, password=settings.password)
    return mounted


def serve(settings: Settings) -> None:
    """Until Ctrl+C. UserInputError for an address that others reach, without a password."""
    check(settings)
    studio = Studio(Queue(), settings.bases)
    move_into_empty_folder(studio.home)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"Spectral Studio is at http://{name}:{settings.port} (Ctrl+C ends it; jobs go on).", flush=True)  # noqa: T201
    config = uvicorn.Config(
        create_app(studio, settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run()


def check(settings: Settings) -> None:
    if settings.password is not None and not settings.password.strip():
        raise UserInputError("The password is empty.", "Choose one, or leave --password out.")
    if settings.password is None and not is_loopback(settings.host):
        raise UserInputError(
            f"{settings.host} is an address that others can reach, and no password is set.",
            "Set one in $SPECTRAL_STUDIO_PASSWORD (or --password), or leave --host out.",
        )


def move_into_empty_folder(home: Path) -> None:
    """Gradio serves files below the current folder to whoever asks; what it is given goes to a folder of ours."""
    empty = home / "web" / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    if any(empty.iterdir()):
        raise UserInputError(f"{empty} must be empty: what lies there would be served.", "Move what is in it away.")
    empty.chmod(0o555)
    os.chdir(empty)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads_dir(home))
