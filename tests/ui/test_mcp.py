"""What language models are offered: the deliberate API, behind the same gate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")
pytest.importorskip("mcp", reason="mcp is not installed: what language models are offered was not tested")

import httpx

from tests.ui.conftest import Server

PASSWORD = "open sesame"


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("speaking"), ("--mcp", "--password", PASSWORD)).start()
    yield running
    running.stop()


def ask(server: Server, method: str, password: str = PASSWORD, **details: Any) -> httpx.Response:
    return httpx.post(
        f"{server.url}/gradio_api/mcp/",
        headers={"accept": "application/json, text/event-stream", "authorization": f"Bearer {password}"},
        json={"jsonrpc": "2.0", "id": 1, "method": method, "params": details},
        timeout=60,
    )


def answer(told: httpx.Response) -> dict[str, Any]:
    (line,) = [line for line in told.text.splitlines() if line.startswith("data:")]
    return json.loads(line[5:])["result"]


def test_the_tools_are_the_deliberate_api(speaking: Server) -> None:
    names = {tool["name"] for tool in answer(ask(speaking, "tools/list"))["tools"]}
    assert {"train", "status", "list_jobs"} <= names
    assert len(names) <= 5


def test_a_tool_is_called_behind_a_password(speaking: Server) -> None:
    told = answer(ask(speaking, "tools/call", name="list_jobs", arguments={}))
    assert not told.get("isError") and told["content"][0]["text"] == "[]"


def test_no_tool_answers_without_the_password(speaking: Server) -> None:
    assert ask(speaking, "tools/list", password="guess").status_code == 401


@pytest.mark.parametrize("address", ["/config", "/gradio_api/file=/etc/passwd"])
def test_a_tool_fetches_no_address(speaking: Server, address: str) -> None:
    given = {"pictures": [speaking.url + address], "trigger": "sks", "class_word": "dog"}
    told = answer(ask(speaking, "tools/call", name="train", arguments=given))
    assert told["isError"] and "no file that was sent" in told["content"][0]["text"]
