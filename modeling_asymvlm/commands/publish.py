"""Publishes a checkpoint with its code, its processor and a model card.

asymvlm publish outputs/asymvlm --repo_id me/asymvlm-scenes --dry_run --output upload/
asymvlm publish outputs/asymvlm --repo_id me/asymvlm-scenes --private
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import transformers
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import disable_progress_bars

from ..publishing.upload import RESULTS_FILE, explain, prepare_upload, upload
from ..reporting.results import read_results
from ..utils.disk_errors import disk_errors_named
from .parser import CommandParser


def command_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser("publish", __doc__ or "")
    parser.add_argument("folder", type=Path, metavar="DIR", help="checkpoint, as training leaves it")
    parser.add_argument("--repo_id", required=True, help="organisation/name on the Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to; default: the main one")
    parser.add_argument("--license", help="of the weights, as the Hub names it, such as apache-2.0")
    parser.add_argument("--dry_run", action="store_true", help="write what would be uploaded, and upload nothing")
    parser.add_argument("--output", type=Path, help="empty or new folder for --dry_run; default: a temporary one")
    return parser


def check_arguments(parsed: argparse.Namespace) -> None:
    """Raises `ValueError` for an output that is not asked for or holds something."""
    if parsed.output is None:
        return
    if not parsed.dry_run:
        raise ValueError("--output goes with --dry_run.")
    if parsed.output.exists() and (not parsed.output.is_dir() or any(parsed.output.iterdir())):
        raise ValueError(f"--output {str(parsed.output)!r} is not an empty folder.")


def main(arguments: list[str]) -> int:
    """The command; returns 0, or leaves with 1 if the Hub cannot be reached or refuses, 2 for wrong arguments."""
    parser = command_parser()
    parsed = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    with parser.failing(ValueError):
        check_arguments(parsed)
    with tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary)
        with parser.failing(ValueError, OSError):
            prepare_upload(parsed.folder, prepared, parsed.repo_id, parsed.license)
        for sentence in read_results(prepared / RESULTS_FILE).get("warnings", []):
            print(f"Warning: {sentence}")
        for file in sorted(prepared.iterdir()):
            print(f"{file.stat().st_size:>12,}  {file.name}")
        if parsed.dry_run:
            output = parsed.output or Path(tempfile.mkdtemp(prefix="asymvlm-upload-"))
            with parser.failing(OSError), disk_errors_named(output):
                shutil.copytree(prepared, output, dirs_exist_ok=True)
            print(f"Nothing was uploaded; these files are in {output}.")
            return 0
        try:
            address = upload(prepared, parsed.repo_id, private=parsed.private or None, revision=parsed.revision)
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            parser.fail(explain(error, parsed.repo_id), code=1)
    print(f"Published: {address}")
    return 0
