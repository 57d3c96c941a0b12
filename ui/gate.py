"""What every request passes before anything answers it: whose name it calls, and whether it has logged in.

It stands before Gradio's own routes and ours alike, so that no endpoint can be forgotten.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
from html import escape
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "studio-session"
_OPEN = ("/login", "/login/")
_GRADIO = "/gradio_api/"
_USED = (
    "app_id", "call/", "cancel", "component_server", "file=/", "heartbeat/", "info", "mcp", "queue/", "reset", "run/",
    "startup-events", "theme.css", "upload",
)  # fmt: skip
"""Endpoints of Gradio's that pages and API use. It has more: fetching from elsewhere, editing its own code, traces."""
_REFUSED = ("/proxy=", "/monitoring")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
}
_LOGIN_BYTES = 4096
_LOCAL = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]{0,2000}")
"""An address of this server. What begins with two slashes names a host; browsers read a backslash as a slash, and leave
tabs and line ends out."""
_WAIT_SECONDS = 0.5


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """ASGI middleware. Without a password only requests that call this machine by a loopback name pass (another
    site's page may resolve its own name to 127.0.0.1); with one, only those that have logged in."""

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        self.app, self.password = app, password
        self._sessions: set[str] = set()
        self._guessing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = await self._answer(request)
        if answer is None:
            await self.app(scope, receive, _with_headers(send))
        else:
            await answer(scope, receive, _with_headers(send))

    async def _answer(self, request: Request) -> Response | None:
        """What is said in the place of the app, if anything."""
        path: str = request.scope["path"]
        if path.startswith(_REFUSED) or (path.startswith(_GRADIO) and not path[len(_GRADIO) :].startswith(_USED)):
            return PlainTextResponse("There is nothing here.", 404)
        if self.password is None:
            if not is_loopback(_host(request)):
                return PlainTextResponse("Open this page as http://127.0.0.1.", 421)
            return None
        if path in _OPEN:
            return await self._login(request)
        if request.cookies.get(COOKIE) in self._sessions:
            return None
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and await self._opens(given):
            return None
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"/login?{urlencode({'next': _asked(request)})}", 303)
        return JSONResponse({"detail": "Log in first: POST username and password to /login."}, 401)

    async def _login(self, request: Request) -> Response:
        onward = request.query_params.get("next", "")
        onward = onward if _LOCAL.fullmatch(onward) else "/"
        action = escape(f"/login?{urlencode({'next': onward})}")
        if request.method != "POST":
            return HTMLResponse(_PAGE.format(message="", action=action))
        body = await _body(request)
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0] if body is not None else ""
        if not await self._opens(given):
            return HTMLResponse(_PAGE.format(message="That is not the password.", action=action), 401)
        token = secrets.token_urlsafe(32)
        self._sessions.add(token)
        wants_page = "text/html" in request.headers.get("accept", "")
        done: Response = RedirectResponse(onward, 303) if wants_page else JSONResponse({"success": True})
        done.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return done

    async def _opens(self, given: str) -> bool:
        """One at a time, and a wrong one takes its while: guessing is slow, for all together."""
        assert self.password is not None
        async with self._guessing:
            if hmac.compare_digest(given.encode(), self.password.encode()):
                return True
            await asyncio.sleep(_WAIT_SECONDS)
            return False


def _host(request: Request) -> str:
    host = request.headers.get("host", "")
    return host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _asked(request: Request) -> str:
    """The address that was asked for, as far as it is this server's to answer."""
    query = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")


async def _body(request: Request) -> bytes | None:
    """The request's body; None where it is longer than a login is."""
    whole = b""
    async for chunk in request.stream():
        whole += chunk
        if len(whole) > _LOGIN_BYTES:
            return None
    return whole


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
            ]
        await send(message)

    return sending


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Spectral Studio: log in</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: Canvas; color: CanvasText }}
form {{ display: grid; gap: 12px; width: min(320px, 86vw) }}
input, button {{ font: inherit; padding: 10px 12px; border-radius: 10px; border: 1px solid GrayText }}
button {{ background: #127a6b; color: white; border: 0; font-weight: 600 }}
[role=alert] {{ min-height: 1.5em; margin: 0 }}
</style>
<main><form method="post" action="{action}"><h1>Spectral Studio</h1>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<p role="alert">{message}</p><button>Log in</button></form></main></html>
"""
