"""A server in a process of its own, and a browser: both started once for all tests of the pages."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.ui.puppet import Puppet

ROOT = Path(__file__).parents[2]
OCTOPUS = sorted((ROOT / "examples" / "octopus").glob("*.png"))
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
BEARABLE = re.compile(
    "Vega-Lite|was preloaded using link preload|Method not implemented"
    "|AbortError: signal is aborted without reason|Unexpected error Connection errored out"
)
"""What Gradio's own parts say: warnings, and what a page still waited for. What brings the
last two was not found out: they come while a page stands, too."""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Server:
    """`studio ui` with a data folder of its own."""

    home: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None
    worker: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SPECTRAL_STUDIO_DATA": str(self.home), "PYTHONPATH": str(ROOT)}

    def _words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "studio", *words]

    def _studio(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._words(*words), env=self._environment, cwd=ROOT)

    def run_to_its_end(self) -> subprocess.CompletedProcess[str]:
        """A server that does not come to serving."""
        words = self._words("ui", "--port", str(self.port), *self.options)
        return subprocess.run(
            words, env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )

    def employ(self) -> None:
        """A worker of ours, which ends with us: the one that the server would start outlives it."""
        self.worker = self._studio("worker")

    def start(self) -> Server:
        self.process = self._studio("ui", "--port", str(self.port), *self.options)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/login" if self.options else self.url, timeout=5):
                    return self
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError("studio ui does not answer")

    def stop(self) -> None:
        for process in (self.process, self.worker):
            if process is not None:
                process.terminate()
                process.wait(60)


@dataclass(frozen=True)
class Staged:
    server: Server
    puppet: Puppet


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")
    running = Server(tmp_path_factory.mktemp("home"))
    running.employ()
    yield running.start()
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
    if CHROMIUM is None:
        pytest.skip("There is no chromium on this machine (apt-get install chromium): no page was opened.")
    api.expect.set_options(timeout=30_000)
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Any, url: str, bearable: re.Pattern[str] = BEARABLE) -> Iterator[Any]:
    """A tab of its own, which must have asked no other host and have said no error by the end of the test."""
    context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(30_000)
    said: list[str] = []
    asked: list[str] = []

    def listen(tab: Any) -> None:
        tab.on("console", lambda line: line.type in ("error", "warning") and said.append(line.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))

    context.on("page", listen)
    yield context.new_page()
    context.close()
    assert [text for text in said if not bearable.search(text)] == []
    assert [url_ for url_ in asked if not url_.startswith((url, "data:", "blob:"))] == []


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    with opened(browser, server.url) as tab:
        yield tab


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a password, `open sesame`."""
    pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")
    running = Server(tmp_path_factory.mktemp("guarded"), ("--password", "open sesame")).start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    """A server whose only worker is a puppet."""
    pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")
    home = tmp_path_factory.mktemp("staged")
    puppet = Puppet(home)
    running = Server(home).start()
    yield Staged(running, puppet)
    running.stop()
    puppet.close()


@pytest.fixture
def puppet(staged: Staged) -> Iterator[Puppet]:
    yield staged.puppet
    staged.puppet.rest()


@pytest.fixture
def staged_page(browser: Any, staged: Staged) -> Iterator[Any]:
    """A tab on the puppet's server."""
    with opened(browser, staged.server.url) as tab:
        yield tab
