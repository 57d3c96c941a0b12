"""The server as somebody meets it who does not use the pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from adapters.errors import UserInputError
from tests.ui.conftest import Server


def _status(url: str, *, data: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    try:
        with urlopen(Request(url, data=data, headers=headers or {}), timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        f"/gradio_api/file={quote('../' * 8 + 'etc/passwd')}",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/media/draft/..%2f..%2fetc/passwd",
        "/media/draft/aaaaaaaaaa/..%2f..%2fstudio.db",
        "/media/job/..%2f../adapter",
        "/media/library/..%2f..%2fetc/thumbnail",
        "/media/library/%25/file/studio",
        "/media/library/aaaa/file/..%2f..%2fstudio.db",
        "/media/job/nothing/sample/..%2fconfig.yaml",
        "/openapi.json",
        "/docs",
    ],
)
def test_nothing_but_what_is_meant_is_served(server: Server, path: str) -> None:
    assert _status(server.url + path) in (400, 403, 404, 405, 422)


def test_the_database_is_not_served(server: Server) -> None:
    assert _status(f"{server.url}/gradio_api/file={quote(str(server.home / 'studio.db'))}") in (403, 404)


def test_another_name_for_this_machine_is_refused(server: Server) -> None:
    assert _status(server.url, headers={"Host": "evil.example"}) == 421


def test_the_api_is_the_deliberate_one_and_nothing_else(server: Server) -> None:
    with urlopen(f"{server.url}/gradio_api/info", timeout=30) as answer:
        told = json.load(answer)
    assert set(told["named_endpoints"]) <= {"/train", "/status", "/list", "/sample", "/fuse"}
    assert told["named_endpoints"] and not told["unnamed_endpoints"]


def test_a_private_handler_takes_no_id_that_is_none(server: Server) -> None:
    with urlopen(f"{server.url}/config", timeout=30) as answer:
        handlers = json.load(answer)["dependencies"]
    assert handlers
    body = json.dumps({"data": ["../../etc", "x"], "fn_index": handlers[-1]["id"], "session_hash": "x"}).encode()
    _status(f"{server.url}/gradio_api/run/predict", data=body, headers={"content-type": "application/json"})
    assert not any(path.name in ("etc", "..") for path in (server.home / "drafts").glob("*"))
    assert _status(server.url) == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("guarded"), ("--password", "open sesame")).start()
    yield running
    running.stop()


def test_without_the_password_nothing_answers_but_the_login(guarded: Server) -> None:
    for path in ("/config", "/gradio_api/info", "/media/job/x/adapter", "/gradio_api/queue/data", "/assets/index.js"):
        assert _status(guarded.url + path) == 401
    assert _status(f"{guarded.url}/gradio_api/upload", data=b"x") == 401
    assert _status(f"{guarded.url}/login", data=b"password=guess") == 401


def test_the_password_opens_the_pages(guarded: Server) -> None:
    opener = build_opener(HTTPCookieProcessor())
    with opener.open(f"{guarded.url}/login", data=b"username=me&password=open+sesame", timeout=30) as answer:
        assert answer.status == 200
    with opener.open(f"{guarded.url}/config", timeout=30) as answer:
        assert answer.status == 200


def test_an_address_that_others_reach_needs_a_password() -> None:
    from ui.server import Settings, check

    for host in ("0.0.0.0", "192.168.1.5", "studio.example", "::"):
        with pytest.raises(UserInputError, match="no password"):
            check(Settings(host=host))
    for host in ("127.0.0.1", "localhost", "::1"):
        check(Settings(host=host))


def test_the_server_has_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from studio.queue import Queue; from ui.server import Settings, create_app; "
        "from ui.studio import Studio; from pathlib import Path; "
        f"create_app(Studio(Queue(Path({str(tmp_path)!r}))), Settings()); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=280)


def test_the_api_reads_no_file_that_was_not_sent(tmp_path: Path) -> None:
    from ui.uploads import received

    mine = tmp_path / "web" / "uploads" / "a" / "sent.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    assert received(tmp_path, [mine]) == [mine]
    for path in (tmp_path / "secret.png", mine.parent / ".." / ".." / ".." / "secret.png", mine.parent / "no.png"):
        with pytest.raises(UserInputError, match="no file that was sent"):
            received(tmp_path, [path])
