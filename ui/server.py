"""`studio ui`: the application put together and served."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI

from adapters.errors import MissingError, UserInputError
from studio.queue import Queue
from ui import media, media_library
from ui.app import build
from ui.gate import Gate, is_loopback
from ui.studio import Studio
from ui.theme import css, theme
from ui.uploads import only_what_was_sent, uploads_dir

MAX_UPLOAD = "2gb"
"""A file beyond this is refused by Gradio itself, with all that came in the same drop: adapters of SDXL can be large.
Pictures have no tighter limit before they are here, since Gradio has one for all its components and an upload does not
tell which it is for. A picture beyond ui.drafts.MAX_BYTES is named and refused alone, and what was sent is deleted."""


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
    demo = build(studio)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode is not supported")  # said even where it was not asked for
        mounted = gr.mount_gradio_app(
            app,
            demo,
            path="/",
            theme=theme(),
            css=css(),
            footer_links=[],
            show_error=False,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=settings.mcp,
            app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    only_what_was_sent(demo, studio.home)
    mounted.add_middleware(Gate, password=settings.password)
    return mounted


def serve(settings: Settings) -> None:
    """Until Ctrl+C. UserInputError for an address that others reach, without a password."""
    check(settings)
    studio = Studio(Queue(), settings.bases)
    move_into_empty_folder(studio.home)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    listening = _listen(settings)
    print(f"Spectral Studio is at http://{name}:{settings.port} (Ctrl+C ends it; jobs go on).", flush=True)  # noqa: T201
    logging.getLogger("uvicorn.error").addFilter(_is_no_goodbye)
    config = uvicorn.Config(create_app(studio, settings), log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(settings: Settings) -> socket.socket:
    """Before anything slow is done: whoever opens the page too early waits, and is not refused."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise UserInputError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}.",
            "Where another studio ui runs there, open it; or choose another port with --port.",
        ) from error


def _is_no_goodbye(record: logging.LogRecord) -> bool:
    """Pages that are open at the end are cut off, which is no error."""
    cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (cut_off or "timeout graceful shutdown exceeded" in record.getMessage())


def check(settings: Settings) -> None:
    if settings.mcp and find_spec("mcp") is None:
        raise MissingError("Offering the API to language models needs mcp.", 'pip install "spectral-studio[mcp]"')
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
