"""Serves a page: how certain prompts are, the pictures they find, and the captions that pictures find.

    asymvlm demo                                             # what `asymvlm example` made, offline
    asymvlm demo --model outputs/mine --dataset captions.jsonl
    asymvlm demo --model me/my-model --embeddings me/my-features --dataset me/my-pairs

Where an argument is left off, the environment variable that its help names is used.
"""

import argparse
import os
import threading

import datasets

from ..demo.loading import open_gallery
from ..demo.page import build_page
from ..demo.serving import serve
from .parser import CommandParser


GALLERY_SIZE = 2000


def command_parser() -> CommandParser:
    """The flags of the page, whose defaults are environment variables."""
    parser = CommandParser("demo", __doc__ or "", flags={"model_name": "model"})

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


def main(arguments: list[str]) -> int:
    """The command, which serves until it is interrupted; leaves with exit code 2 for what cannot be shown."""
    options = parse_arguments(arguments)
    with command_parser().failing(ValueError, OSError, datasets.exceptions.DatasetsError):
        gallery = open_gallery(
            options.model,
            options.embeddings,
            options.dataset,
            options.image_folder,
            gallery_size=options.gallery_size,
        )
    page = build_page(gallery)
    named = [host.strip() for host in (options.allowed_hosts or "").split(",") if host.strip()]
    address = serve(page, options.host, options.port, named)
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    threading.Event().wait()  # for Ctrl-C
    return 0
