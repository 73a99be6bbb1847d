"""Connections that hold the server without asking anything of it."""

import threading
import time
from typing import Any


def drop_half_requests(server: Any, seconds: float) -> None:
    """
    Closes, in the background, connections that began a request and have not finished its head for so long. Those that
    are idle between requests, uvicorn closes itself after five seconds.

    Args:
        server (`uvicorn.Server`): while it runs.
        seconds (`float`): half the longest time that such a connection stays.
    """
    threading.Thread(target=_watch, args=(server, seconds), daemon=True).start()


def _watch(server: Any, seconds: float) -> None:
    seen: set[tuple[Any, Any]] = set()
    while not server.should_exit:
        time.sleep(seconds)
        # A connection has the last request that was read whole, none at first.
        waiting = {
            (connection, connection.cycle)
            for connection in list(server.server_state.connections)
            if connection.cycle is None or connection.cycle.response_complete
        }
        for connection, _ in waiting & seen:
            connection.loop.call_soon_threadsafe(connection.transport.close)
        seen = waiting
