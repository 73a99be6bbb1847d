"""What visitors may ask of the server: what the page itself asks, and nothing that names a foreign address."""

import asyncio
import json
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


# Gradio has many more, such as for files, recordings and the history of runs. Pictures are data in the page.
OPEN_ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static)/.+"
    r"|/gradio_api/(startup-events|app_id|heartbeat/[^/]+|upload|queue/(join|data))"
)
EVENT_ROUTE = "/gradio_api/queue/join"
MAX_EVENT_BYTES = 2**16
BODY_SECONDS = 20  # between two pieces of a request

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::", "")

# Gradio writes scripts and styles into the page; nothing may come from, or go to, another server.
CONTENT = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors "
)


class HostsOnly:
    """
    Answers 421 to requests for a host that is not on the list, so that no web page reads the gallery by giving its own
    name the server's address, and 403 to those that come from a page of another origin. Tells browsers that the page
    may not be framed and takes nothing from elsewhere.

    Args:
        app (`ASGIApp`): what is answered for.
        hosts (`Collection[str]`): names and addresses by which visitors may reach the page, without ports.
        frame_ancestors (`Sequence[str]`, *optional*): origins of pages that may frame it; by default none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], frame_ancestors: Sequence[str] = ()):
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        headers = {
            "content-security-policy": CONTENT + (" ".join(frame_ancestors) or "'none'"),
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        if not frame_ancestors:
            headers["x-frame-options"] = "DENY"
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        host = b", ".join(value for name, value in scope["headers"] if name == b"host").decode("latin-1").lower()
        origins = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"origin"]
        app = self.app
        if _name_of(host) not in self.hosts:
            app = _refusal(421, f"This page is not served for {host[:100]!r}: name the host when starting it.")
        elif any(origin.partition("://")[2] != host for origin in origins):
            app = _refusal(403, "This page takes requests from itself alone.")
        elif scope["type"] == "websocket":
            app = _refusal(404, "The page has no such route.")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in self._headers}
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in named]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        await app(scope, receive, send_with_headers)


def _name_of(host: str) -> str:
    """The name or address of a Host header, without its port; "" for what is none."""
    match = re.fullmatch(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@/\s,]+))(?::\d+)?", host)
    return (match["address"] or match["name"]) if match else ""


def hosts_of(address: str, named: Sequence[str]) -> list[str]:
    """The hosts of a page: this machine, the address that it is served at, and those that are named."""
    own = [] if address in EVERY_ADDRESS else [address.strip("[]")]
    return [*LOOPBACK, *own, *named]


class PageOnly:
    """
    Answers 404 on every route that the page does not use, and refuses events that are too long (413) or name a file
    by anything but an absolute path (400): Gradio downloads addresses before the page's own code sees them. That the
    path is one of an upload, Gradio checks. Requests of which nothing more comes are dropped (408).
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, _in_time(receive), send)
        except TimeoutError:
            await _refusal(408, "The request never came to its end.")(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and not OPEN_ROUTES.fullmatch(scope["path"]):
            app = _refusal(404, "The page has no such route.")
        elif scope["type"] == "http" and scope["path"] == EVENT_ROUTE:
            body = await _beginning(receive, MAX_EVENT_BYTES + 1)
            if len(body) > MAX_EVENT_BYTES:
                app = _refusal(413, f"This event has more than {MAX_EVENT_BYTES} bytes: shorten it.")
            elif not _names_no_address(body):
                app = _refusal(
                    400, "An event must be JSON and name files by the paths of uploads: upload the picture."
                )
            receive = _read_again(body, receive)
        await app(scope, receive, send)


def _refusal(status: int, detail: str) -> ASGIApp:
    return JSONResponse({"detail": detail}, status_code=status)


async def _beginning(receive: Receive, num_bytes: int) -> bytes:
    """The body of a request, of which no more is read once it has so many bytes."""
    body, more = b"", True
    while more and len(body) < num_bytes:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _in_time(receive: Receive) -> Receive:
    """Raises `TimeoutError` while a request is incomplete and nothing more of it comes."""
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        async with asyncio.timeout(BODY_SECONDS):
            message = await receive()
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


def _read_again(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _names_no_address(body: bytes) -> bool:
    try:
        json.loads(body, object_hook=_with_local_path)
    except (ValueError, RecursionError):
        return False
    return True


def _with_local_path(value: dict[str, Any]) -> dict[str, Any]:
    """Gradio takes a dictionary with a path for a file, at any depth."""
    path = value.get("path", os.sep)
    if not isinstance(path, str) or not os.path.isabs(path):
        raise ValueError(f"The path {path!r} is not absolute.")
    return value
