"""A page to look at: how certain prompts are, the pictures they find, and the captions that pictures find.

    python demo/app.py                                             # the embedded example, offline
    python demo/app.py --model outputs/mine --dataset captions.jsonl
    python demo/app.py --model me/my-model --embeddings me/my-features --dataset me/my-pairs

Where an argument is left off, the environment variable that its help names is used.
"""

import argparse
import os
import sys
from pathlib import Path

import datasets
import gradio as gr
import transformers
from access import PageOnly
from loading import open_gallery
from page import THEME, build_page
from pictures import MAX_UPLOAD_BYTES
from starlette.middleware import Middleware

from modeling_asymvlm.commands.parser import CommandParser


GALLERY_SIZE = 2000


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
    add("--port", "GRADIO_SERVER_PORT", "port to serve at, default: the first free one from 7860", type=int)
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Arguments, and environment variables in place of those that are left off."""
    return command_parser().parse_args(arguments)


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
    address = serve(page, options.host, options.port)
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main(sys.argv[1:])
