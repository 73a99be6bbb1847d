"""What visitors may ask of the server: what the page itself asks, and nothing that names a foreign address."""

import json
import os
import re
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


class PageOnly:
    """
    Answers 404 on every route that the page does not use, and refuses events that are too long (413) or name a file
    by anything but an absolute path (400): Gradio downloads addresses before the page's own code sees them. That the
    path is one of an upload, Gradio checks.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
