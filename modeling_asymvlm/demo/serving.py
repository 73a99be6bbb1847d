"""Serves the page."""

import os
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from .access import HostsOnly, PageOnly, hosts_of
from .connections import drop_half_requests
from .page import THEME
from .pictures import MAX_UPLOAD_BYTES


IDLE_SECONDS = 20  # of a connection that began a request and went silent
MAX_WAITING = 16  # events; further visitors are told to try again


def serve(page: gr.Blocks, host: str, port: int | None, allowed_hosts: Sequence[str] = ()) -> str:
    """
    Serves a page in the background, and returns its address.

    Args:
        page (`gr.Blocks`): the page.
        host (`str`), port (`int`, *optional*): where to serve; the first free port from 7860 by default.
        allowed_hosts (`Sequence[str]`, *optional*): names by which visitors may reach it, besides `host`.
    """
    space = os.environ.get("SPACE_HOST")  # set where a Space of the Hub serves the page, in a frame of the Hub's own
    hosts = hosts_of(host, [*allowed_hosts, *filter(None, [space])])
    frames = ["https://huggingface.co"] if space else []
    page.queue(max_size=MAX_WAITING)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD_BYTES,
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(HostsOnly, hosts=hosts, frame_ancestors=frames), Middleware(PageOnly)]},
        theme=THEME,
        css_paths=Path(__file__).with_name("page.css"),
        quiet=True,
        prevent_thread_lock=True,
    )
    drop_half_requests(page.server, IDLE_SECONDS)
    return address
