"""The part of the Hub's API that creating a repository and committing to it call, on this machine, in memory."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlparse

import huggingface_hub
import pytest


class HubStandIn(ThreadingHTTPServer):
    """
    `repositories` maps a name to `{"private": ..., "branches": {branch: {path: bytes}}, "commits": count}`. `refuse`
    is a status to answer every request with; `cut` is "lfs" or "commit", where each connection breaks half-way.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse: int | None = None
        self.cut: str | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[name]["branches"].get(branch, {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *arguments) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content: dict | None = None, status: int = 200, **headers: str) -> None:
        data = json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def break_off(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def handle_request(self) -> None:
        hub, path = self.server, urlparse(self.path).path
        hub.requests.append(f"{self.command} {path}")
        if hub.refuse is not None:
            self.body()
            self.answer({"error": "refused"}, hub.refuse)
        elif (hub.cut == "lfs" and self.command == "PUT") or (hub.cut == "commit" and "/commit/" in path):
            self.break_off()
        else:
            self.route(path, self.body())

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/repos/create":
            payload = json.loads(body)
            name = f"{payload['organization']}/{payload['name']}"
            exists = name in hub.repositories
            private = payload.get("visibility") == "private"
            hub.repositories.setdefault(name, {"private": private, "branches": {"main": {}}, "commits": 0})
            self.answer({"url": f"{hub.endpoint}/{name}"}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            self.answer()
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            modes = {name: "lfs" if name.endswith((".safetensors", ".png")) else "regular" for name in _paths(files)}
            self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for item in objects:
                if item["oid"] not in hub.large_files:
                    item["actions"] = {"upload": {"href": f"{hub.endpoint}/large/{item['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/large/(\w+)", path):
            matches = hashlib.sha256(body).hexdigest() == match[1]
            if matches:
                hub.large_files[match[1]] = body
            self.answer({}, 200 if matches else 400)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = hub.repositories[match[1]]["branches"]
            exists = match[2] in branches
            branches.setdefault(match[2], dict(branches["main"]))
            self.answer({}, 409 if exists else 200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            repository = hub.repositories[match[1]]
            repository["branches"][match[2]] = {**repository["branches"][match[2]], **self.committed(body)}
            repository["commits"] += 1
            oid = f"{repository['commits']:040x}"
            self.answer({"commitUrl": f"{hub.endpoint}/{match[1]}/commit/{oid}", "commitOid": oid})
        elif (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)) and match[1] in hub.repositories:
            self.answer({"id": match[1], "private": hub.repositories[match[1]]["private"], "siblings": [], "tags": []})
        else:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")

    def committed(self, body: bytes) -> dict[str, bytes]:
        files = {}
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
        return files


def _paths(files: list[dict]) -> Iterator[str]:
    return (file["path"] for file in files)


@contextmanager
def hub_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running stand-in that the Hub's client talks to, without waiting between its attempts."""
    constants = huggingface_hub.constants
    with HubStandIn() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which keeps its endpoint
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_the_tests")
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
        huggingface_hub.close_session()
