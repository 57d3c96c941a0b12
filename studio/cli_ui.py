"""`studio ui`: the web pages. Their storey stands on this one, so it is known here by its name alone."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from adapters.errors import MissingError


def ui(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; any but this machine's own needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="SPECTRAL_STUDIO_PASSWORD",
            help="Ask for this password; better given in $SPECTRAL_STUDIO_PASSWORD, where other users do not see it.",
        ),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(metavar="BASE", help="A base to offer besides the built-in one and SDXL 1.0; several times."),
    ] = None,
    mcp: Annotated[bool, typer.Option("--mcp", help="Offer the API to language models, too (MCP).")] = False,
) -> None:
    """Open the web pages: teach, watch and draw in a browser."""
    try:
        server = import_module("ui.server")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingError("The web pages need gradio.", 'pip install "spectral-studio[ui]"') from error
    server.serve(server.Settings(host, port, password, tuple(base or ()), mcp))


def add_to(app: typer.Typer) -> None:
    app.command()(ui)
