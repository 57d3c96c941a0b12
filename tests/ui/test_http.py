"""The server as somebody meets it who does not use the pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

import httpx
from gradio_client import Client, handle_file
from PIL import Image

from adapters.errors import UserInputError
from tests.ui.conftest import Server, Staged
from tests.ui.puppet import Puppet


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


def test_a_port_that_is_taken_is_said_in_a_sentence(server: Server, tmp_path: Path) -> None:
    told = Server(tmp_path, port=server.port).run_to_its_end()
    assert told.returncode != 0
    assert f"127.0.0.1:{server.port} cannot be listened on: Address already in use" in told.stderr
    assert "Traceback" not in told.stderr and "Spectral Studio is at" not in told.stdout


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


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A picture's address at another server of this machine, and what that server was asked."""
    asked: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"inner secret")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None: ...

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    Thread(target=other.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{other.server_address[1]}/x.png", asked
    other.shutdown()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture of the machine's that nobody has uploaded."""
    path = tmp_path / "secret.png"
    Image.effect_noise((200, 200), 80).save(path)
    return path


def file_data(path: str, url: str | None = None) -> dict[str, Any]:
    return {"path": path, "url": url, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


def outcomes(client: httpx.Client, payloads: list[dict[str, Any]]) -> list[bool]:
    """Whether each call through the pages' own queue went well, once all are over."""
    for payload in payloads:
        client.post("/gradio_api/queue/join", json={"session_hash": "s", **payload}).raise_for_status()
    found: list[bool] = []
    with client.stream("GET", "/gradio_api/queue/data?session_hash=s") as lines:
        for line in lines.iter_lines():
            told = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
            if told["msg"] == "process_completed":
                found.append(told["success"])
            if len(found) == len(payloads) or told["msg"] == "close_stream":
                return found
    return found


def holds(server: Server, file: Path) -> bool:
    """Whether the server has taken a copy of the file.

    The database is left alone: closing it, read in a process that has it open, would drop that process's locks.
    """
    content = file.read_bytes()
    copies = (path for path in server.home.rglob("*") if path.is_file() and not path.name.startswith("studio.db"))
    return any(path.read_bytes() == content for path in copies)


def test_no_handler_takes_a_file_of_the_machine_or_fetches_an_address(
    staged: Staged, secret: Path, elsewhere: tuple[str, list[str]]
) -> None:
    url, asked = elsewhere
    server = staged.server
    with httpx.Client(base_url=server.url, timeout=60) as client:
        handlers = client.get("/config").json()["dependencies"]
        bad = [
            file_data(str(secret)),
            file_data(url, url),
            file_data("x.png", url),
            [file_data(str(server.home / "studio.db"))],
        ]
        payloads = [
            {"fn_index": handler["id"], "data": [one] * len(handler["inputs"]), "event_data": {"path": str(secret)}}
            for handler in handlers
            if handler["inputs"] and handler["backend_fn"]
            for one in bad
        ]
        assert payloads
        assert len(outcomes(client, payloads)) == len(payloads)
    assert not holds(server, secret) and asked == []
    assert _status(server.url) == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "SECRET", "file:///etc/passwd", "URL", "../../studio.db"])
def test_train_learns_from_no_file_that_was_not_sent(
    staged: Staged, secret: Path, elsewhere: tuple[str, list[str]], path: str
) -> None:
    url, asked = elsewhere
    server, queue = staged.server, staged.puppet.queue
    before = len(queue.list_jobs())
    given = file_data({"SECRET": str(secret), "URL": url}.get(path, path))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for address in ("/gradio_api/call/train", "/gradio_api/run/train"):
            told = client.post(address, json={"data": [[given], "sks", "dog", "quick", "embedded"]})
            if told.status_code == 200:
                event = told.json()["event_id"]
                assert "event: error" in client.get(f"{address}/{event}").text
    assert not holds(server, secret) and asked == []
    assert len(queue.list_jobs()) == before
    for copied in (server.home / "web" / "uploads").glob("*/passwd"):
        raise AssertionError(copied)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=https://example.com/x",
        "/gradio_api/vibe-code",
        "/gradio_api/dev/reload",
        "/gradio_api/openapi.json",
        "/gradio_api/run-history/records",
        "/gradio_api/profiling/traces",
        "/gradio_api/custom_component/x/server/x/x.py",
        "/monitoring/summary",
    ],
)
def test_gradios_other_endpoints_are_shut(server: Server, path: str) -> None:
    assert _status(server.url + path) == 404


def test_an_upload_cannot_choose_where_it_lies(staged: Staged) -> None:
    with httpx.Client(base_url=staged.server.url) as client:
        (path,) = client.post("/gradio_api/upload", files={"files": ("../../../../runs/x.png", b"x")}).json()
    assert Path(path).resolve().is_relative_to(staged.server.home / "web" / "uploads")


def test_a_client_teaches_with_pictures_that_it_uploads(staged: Staged, puppet: Puppet) -> None:
    pictures = [handle_file(path) for path in sorted(puppet.pictures.glob("*.png"))]
    client = Client(staged.server.url, verbose=False)
    id = client.predict(pictures, "sks", "dog", "quick", "embedded", api_name="/train")
    assert client.predict(id, api_name="/status")["state"] == "queued"
    assert id in [job["id"] for job in client.predict(api_name="/list")]


def test_a_bearer_of_the_password_needs_no_session(guarded: Server) -> None:
    for word, status in (("open sesame", 200), ("guess", 401)):
        assert _status(f"{guarded.url}/config", headers={"Authorization": f"Bearer {word}"}) == status


def _login(server: Server, **options: Any) -> httpx.Response:
    data, headers = {"password": "open sesame"}, {"accept": "text/html"}
    return httpx.post(f"{server.url}/login", data=data, headers=headers, timeout=60, **options)


def test_the_login_leads_to_the_address_that_was_asked_for(guarded: Server) -> None:
    asked = "/run?job=abc&x=%C3%BC"
    sent = httpx.get(guarded.url + asked, headers={"accept": "text/html"}, timeout=60)
    assert sent.status_code == 303
    form = httpx.get(guarded.url + sent.headers["location"], timeout=60).text
    (action,) = re.findall(r'action="([^"]+)"', form)
    answer = httpx.post(
        guarded.url + unescape(action), data={"password": "open sesame"}, headers={"accept": "text/html"}, timeout=60
    )
    assert answer.status_code == 303 and answer.headers["location"] == asked


@pytest.mark.parametrize(
    "address",
    ["//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "https:evil", "/\t/evil.example",
     "/\r\n//evil", "javascript:alert(1)", "evil.example", " //evil.example", "", "/a\\..\\\\evil"],
)  # fmt: skip
def test_the_login_leads_to_no_other_host(guarded: Server, address: str) -> None:
    assert _login(guarded, params={"next": address}).headers["location"] == "/"


def test_the_login_shows_no_markup_of_an_address(guarded: Server) -> None:
    page = httpx.get(f"{guarded.url}/login", params={"next": '/"><script>alert(1)</script>'}, timeout=60).text
    assert "<script>" not in page and "%3Cscript%3E" in page
