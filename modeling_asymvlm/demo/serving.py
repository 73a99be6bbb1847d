"""Serves the page."""

from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from .access import PageOnly
from .page import THEME
from .pictures import MAX_UPLOAD_BYTES


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Serves a page in the background, and returns its address."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD_BYTES,
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(PageOnly)]},
        theme=THEME,
        css_paths=Path(__file__).with_name("page.css"),
        quiet=True,
        prevent_thread_lock=True,
    )
    return address
