"""What visitors can ask of the server: the page's own routes and events, and no foreign address."""

import asyncio
import inspect
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image


gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")

from modeling_asymvlm.demo import access  # noqa: E402
from modeling_asymvlm.demo.serving import MAX_WAITING  # noqa: E402
from tests.support.demo_cases import make_case  # noqa: E402


PROMPT, ALPHA, UPLOAD, EXAMPLE = range(4)  # the events, in the order of the page
ADDRESS = "http://example.com/big.png"
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 30  # seconds for the slowest machine

# The command, with a stand-in for Gradio's downloads that tells of them.
PROGRAM = """
import sys
from gradio import processing_utils

async def download(url, cache_dir):
    print(f"downloads {url}", file=sys.stderr, flush=True)
    raise ConnectionError(url)

processing_utils.async_ssrf_protected_download = download
import time
from modeling_asymvlm.__main__ import main
from modeling_asymvlm.demo import gallery, serving

serving.IDLE_SECONDS = 6  # longer than uvicorn keeps idle connections
read = gallery.Gallery.read

def read_slowly(self, prompt):
    time.sleep(0.5 * (prompt == "slowly"))
    return read(self, prompt)

gallery.Gallery.read = read_slowly
sys.exit(main(["demo", *sys.argv[1:]]))
"""


def file_at(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@dataclass
class Served:
    """A client of a page that is served, and where the server writes what goes wrong."""

    client: httpx.Client
    log: Path

    def post(self, event: int, data: list, **changes) -> httpx.Response:
        body = {"data": data, "fn_index": event, "session_hash": "visitor", **changes}
        return self.client.post("/gradio_api/queue/join", json=body)

    def answer(self, event: int, data: list) -> dict:
        """What an event that is let in gives."""
        assert self.post(event, data).status_code == 200
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "visitor"}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data: ") and (said := json.loads(line[6:]))["msg"] == "process_completed":
                    return said
        raise AssertionError("The event was never completed.")


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("demo")
    case = make_case(folder)
    command = [sys.executable, "-c", PROGRAM, "--model", str(case.model), "--dataset", str(case.data)]
    variables = {"HF_DATASETS_CACHE": str(folder), "GRADIO_TEMP_DIR": str(folder / "uploads"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            said = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert said is not None, (folder / "log").read_text()
            with httpx.Client(base_url=said[0], timeout=PATIENCE) as client:
                yield Served(client, folder / "log")
        finally:
            process.terminate()
            process.wait(PATIENCE)
            process.stdout.close()


def test_an_uploaded_picture_is_answered_and_a_file_of_the_server_is_not(served, tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(content, "PNG")
    secret = tmp_path / "secret.png"
    secret.write_bytes(content.getvalue())
    (path,) = served.client.post("/gradio_api/upload", files={"files": ("a.png", content.getvalue())}).json()
    assert 'class="captioned"' in served.answer(UPLOAD, [file_at(path)])["output"]["data"][0]
    refused = served.answer(UPLOAD, [file_at(str(secret))])
    assert not refused["success"] and "captioned" not in json.dumps(refused)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (UPLOAD, [file_at(ADDRESS)]),
        (UPLOAD, [file_at("https://example.com/big.png")]),
        (UPLOAD, [[{"deep": file_at(ADDRESS)}]]),
        (UPLOAD, [{**file_at("/here"), "more": file_at(ADDRESS)}]),
        (PROMPT, [file_at(ADDRESS), 0.1]),
        (ALPHA, ["red", file_at(ADDRESS)]),
        (EXAMPLE, [file_at(ADDRESS)]),
        (UPLOAD, [file_at("relative.png")]),
    ],
)
def test_an_event_that_names_an_address_is_refused_before_anything_is_downloaded(served, event, data):
    response = served.post(event, data)
    assert response.status_code == 400 and "upload the picture" in response.json()["detail"]
    assert served.answer(PROMPT, ["red 3", 0.1])["success"]  # after whatever the event before it did
    assert "downloads" not in served.log.read_text()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 30_000, b'{"path": 3}'])
def test_events_that_are_no_events_are_refused(served, body):
    assert served.client.post("/gradio_api/queue/join", content=body).status_code == 400


def test_long_prompts_are_refused_on_the_way_and_by_every_event(served):
    assert served.post(ALPHA, ["red " * access.MAX_EVENT_BYTES, 0.1]).status_code == 413
    for event in (PROMPT, ALPHA):
        assert "501 characters" in served.answer(event, ["x" * 501, 0.1])["output"]["data"][0]
    assert served.post(PROMPT, ["\u00e9" * 500, 0.1]).status_code == 200


def test_every_route_of_gradio_that_the_page_does_not_use_answers_404(served):
    decorators = re.findall(r'@(app|router)\.\w+\(\s*"(/[^"]*)"', inspect.getsource(gradio.routes))
    routes = {("/gradio_api" if owner == "router" else "") + path for owner, path in decorators}
    needed = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
    needed |= {"/assets/{path:path}", "/static/{path:path}", "/gradio_api/heartbeat/{session_hash}"}
    needed |= {f"/gradio_api/{name}" for name in ("startup-events", "app_id", "upload", "queue/join", "queue/data")}
    assert needed <= routes and {"/gradio_api/process_recording", "/gradio_api/run/{api_name}"} <= routes
    others = sorted(re.sub(r"{.*?}", "x", route) for route in routes - needed)
    for path in [*others, "/gradio_api//queue/join", "/gradio_api/queue/join/"]:
        for method in ("GET", "POST"):
            response = served.client.request(method, path)
            assert response.status_code == 404 and "no such route" in response.text, (method, path)
    for path in ("/", "/config", "/theme.css", "/manifest.json", "/robots.txt", "/gradio_api/app_id"):
        assert served.client.get(path).status_code == 200, path
    assert not served.client.get("/config").json()["run_history"]


HOSTS = ["localhost", "127.0.0.1", "[::1]", "localhost:7860", "127.0.0.1:80", "LOCALHOST", "[::1]:7860"]
FOREIGN = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "127.0.0.2", "0.0.0.0", "", "[::1"]
FOREIGN += [
    "localhost@evil.example",
    "evil.example/localhost",
    "localhost, evil.example",
    "localhost:x",
    "[::1]x",
    "::1",
]


def answered(host: str | None, origin: str | None = None, method: str = "GET", **options) -> httpx.Response:
    """What the list of hosts makes of a request, before an app that answers 200."""
    headers = [(b"host", host.encode())] if host is not None else []
    headers += [(b"origin", origin.encode())] if origin is not None else []
    scope = {"type": "http", "method": method, "path": "/", "headers": headers}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOWALL")]})
        await send({"type": "http.response.body", "body": b""})

    hosts = access.hosts_of(options.pop("address", "127.0.0.1"), options.pop("named", ()))
    asyncio.run(access.HostsOnly(app, hosts, **options)(scope, receive, send))
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"])


@pytest.mark.parametrize("host", HOSTS)
def test_this_machine_is_answered_by_its_names(host):
    assert answered(host).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, None])
def test_another_host_is_answered_nothing(host):
    assert answered(host).status_code == 421


def test_hosts_that_are_named_are_answered_and_no_others():
    assert answered("gallery.example:7860", named=["Gallery.Example"]).status_code == 200
    assert answered("sub.gallery.example", named=["gallery.example"]).status_code == 421
    assert answered("192.168.1.5:7860", address="192.168.1.5").status_code == 200
    assert answered("[fe80::1]:7860", address="fe80::1").status_code == 200
    for everywhere in ("0.0.0.0", "::"):
        assert answered("192.168.1.5:7860", address=everywhere).status_code == 421
        assert answered("localhost", address=everywhere).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_requests_of_other_origins_are_refused(method):
    assert answered("localhost:7860", "http://localhost:7860", method).status_code == 200
    assert answered("localhost:7860", "https://localhost:7860", method).status_code == 200
    for origin in (
        "http://evil.example",
        "http://localhost:3000",
        "http://127.0.0.1:7860",
        "null",
        "",
        "localhost:7860",
    ):
        assert answered("localhost:7860", origin, method).status_code == 403


def test_the_page_may_not_be_framed_and_takes_nothing_from_elsewhere():
    for host in ("localhost", "evil.example"):
        headers = answered(host).headers
        assert headers.get_list("x-frame-options") == ["DENY"] and headers["x-content-type-options"] == "nosniff"
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["frame-ancestors"] == "'none'" and policy["object-src"] == "'none'"
        assert not re.search("http|[*]", headers["content-security-policy"])
    framed = answered("localhost", frame_ancestors=["https://huggingface.co"]).headers
    assert framed["content-security-policy"].endswith("frame-ancestors https://huggingface.co")


def test_a_page_that_is_served_answers_its_own_host_and_origin_alone(served):
    own = str(served.client.base_url).removeprefix("http://").rstrip("/")
    for path in ("/", "/config", "/gradio_api/queue/data?session_hash=visitor"):
        assert served.client.get(path, headers={"Host": "evil.example"}).status_code == 421
    body = {"data": ["red", 0.1], "fn_index": PROMPT, "session_hash": "visitor"}
    for origin, status in (("http://evil.example", 403), (f"http://{own}", 200)):
        response = served.client.post(access.EVENT_ROUTE, json=body, headers={"Origin": origin})
        assert response.status_code == status
    assert "frame-ancestors 'none'" in served.client.get("/").headers["content-security-policy"]


def test_a_request_whose_body_never_comes_is_answered_and_dropped(monkeypatch):
    monkeypatch.setattr(access, "BODY_SECONDS", 0.05)
    sent = []

    async def receive():
        await asyncio.sleep(PATIENCE)

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        await receive()

    for path in (access.EVENT_ROUTE, "/gradio_api/upload"):
        sent.clear()
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        asyncio.run(access.PageOnly(app)(scope, receive, send))
        assert sent[0]["status"] == 408


def test_a_waiting_line_has_an_end(served):
    statuses = [served.post(PROMPT, ["slowly", 0.1]).status_code for _ in range(60)]
    assert set(statuses) == {200, 503} and statuses.count(200) < 60 - MAX_WAITING


def test_a_connection_with_half_a_request_is_dropped(served):
    address = served.client.base_url
    with socket.create_connection((address.host, address.port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow")
        assert connection.recv(1) == b""  # closed, where an answer would begin with HTTP
    assert served.client.get("/").status_code == 200
