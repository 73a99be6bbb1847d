"""A page to look at: how certain prompts are, the pictures they find, and the captions that pictures find.

    python demo/app.py                                             # the embedded example, offline
    python demo/app.py --model outputs/mine --dataset captions.jsonl
    python demo/app.py --model me/my-model --embeddings me/my-features --dataset me/my-pairs

Where an argument is left off, the environment variable that its help names is used.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import gradio as gr
import transformers
from access import HostsOnly, PageOnly, hosts_of
from connections import drop_half_requests
from loading import open_gallery
from page import THEME, build_page
from pictures import MAX_UPLOAD_BYTES
from starlette.middleware import Middleware

from modeling_asymvlm.commands.parser import CommandParser


GALLERY_SIZE = 2000
IDLE_SECONDS = 20  # of a connection that began a request and went silent
MAX_WAITING = 16  # events; further visitors are told to try again


def command_parser() -> CommandParser:
    """The flags of the page, whose defaults are environment variables."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandParser(
        "app.py",
        f"{description}\n\nexamples:\n{examples}",
        prog="python demo/app.py",
        flags={"model_name": "model"},
    )

    def add(flag: str, variable: str, help_text: str, **options) -> None:
        options["default"] = os.environ.get(variable) or options.get("default")
        parser.add_argument(flag, help=f"{help_text} [{variable}]", **options)

    add("--model", "ASYMVLM_MODEL", "checkpoint: a folder, or a repository of the Hub; default: outputs/asymvlm")
    add(
        "--embeddings",
        "ASYMVLM_EMBEDDINGS",
        "store of features: a folder, or a data set of the Hub; default: embeddings/ in the checkpoint",
    )
    add("--dataset", "ASYMVLM_DATASET", "where the pictures are: the pairs that the store was made from")
    add(
        "--image_folder",
        "ASYMVLM_IMAGE_FOLDER",
        "what paths of the data set are relative to; without --dataset, a folder of files named after the image ids",
    )
    add(
        "--gallery_size",
        "ASYMVLM_GALLERY_SIZE",
        f"pictures at most, default: {GALLERY_SIZE}",
        type=int,
        default=GALLERY_SIZE,
    )
    add("--host", "GRADIO_SERVER_NAME", "address to serve at, default: this machine alone", default="127.0.0.1")
    add(
        "--allowed_hosts",
        "ASYMVLM_ALLOWED_HOSTS",
        "names by which visitors may reach the page, separated by commas, besides this machine's and --host",
    )
    add("--port", "GRADIO_SERVER_PORT", "port to serve at, default: the first free one from 7860", type=int)
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Arguments, and environment variables in place of those that are left off."""
    return command_parser().parse_args(arguments)


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


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    transformers.utils.logging.disable_progress_bar()
    try:
        gallery = open_gallery(
            options.model,
            options.embeddings,
            options.dataset,
            options.image_folder,
            gallery_size=options.gallery_size,
        )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        command_parser().fail(error, code=1)
    page = build_page(gallery)
    named = [host.strip() for host in (options.allowed_hosts or "").split(",") if host.strip()]
    address = serve(page, options.host, options.port, named)
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main(sys.argv[1:])
