"""Questions whose answers take torch, asked from a process that has none: the web server's.

The clerk is a process of its own (studio.clerk_process) that reads a question a line and writes an answer a line. It is
started when it is first needed, and again where it has died; it ends with whoever asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from adapters.errors import StudioError
from studio.paths import state_dir

PATIENCE_SECONDS = 120.0


class RefusedError(StudioError):
    """What the clerk was asked for is refused: `what`, `fix`, and a sentence for each key that is wrong."""

    def __init__(self, what: str, fix: str, keys: dict[str, str] | None = None) -> None:
        super().__init__(what, fix)
        self.keys = keys or {}


class Clerk:
    """May be asked from any thread; answers one question at a time."""

    def __init__(self, name: str = "clerk", patience: float = PATIENCE_SECONDS) -> None:
        """`name` is its log's; one that takes longer than `patience` seconds over a question is ended."""
        self.name, self.patience = name, patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def wake(self) -> None:
        """Starts it, so that it is ready when the first question comes; does not wait."""
        threading.Thread(target=self._wake, name="studio-clerk", daemon=True).start()

    def _wake(self) -> None:
        with self._lock:
            self._living()

    def ask(self, question: str, **details: Any) -> Any:
        """The answer. RefusedError with the clerk's own words; StudioError where it does not answer."""
        with self._lock:
            for _ in range(2):
                line = self._exchange(json.dumps({"question": question, **details}))
                if line:
                    return _answer(line)
            raise StudioError(
                "The process that was asked has ended twice over this question.",
                f"Its log is {_log(self.name)}; try again.",
            )

    def _exchange(self, line: str) -> str:
        process = self._living()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self.patience, process.kill)
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        except (BrokenPipeError, ValueError):
            return ""
        finally:
            timer.cancel()

    def _living(self) -> subprocess.Popen[str]:
        if self._closed:
            raise StudioError("The server is ending.", "Start it again.")
        if self._process is None or self._process.poll() is not None:
            self._process = _start(self.name)
        return self._process

    def close(self) -> None:
        self._closed = True
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait(5)


def _answer(line: str) -> Any:
    whole = json.loads(line)
    if "refused" in whole:
        refused = whole["refused"]
        raise RefusedError(refused["what"], refused["fix"], refused["keys"])
    return whole["answer"]


def _log(name: str) -> Path:
    return state_dir() / "logs" / f"{name}.log"


def _start(name: str) -> subprocess.Popen[str]:
    code = str(Path(__file__).parents[1])
    search = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    _log(name).parent.mkdir(parents=True, exist_ok=True)
    with _log(name).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "studio.clerk_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": search},
        )
