"""Makes, trains and shows the embedded Scenes example, which needs no network.

    asymvlm example
    asymvlm example --output_dir outputs/scenes --distribution vmf
    asymvlm demo                        # afterwards: a page on it

Generated pictures of one shape, captions that name a random subset of its attributes, and a tiny CLIP. The pictures
are kept in the cache of the user, ~/.cache/asymvlm. All arguments of `train` but those of data and backbone are taken.
"""

from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModel, AutoProcessor

from ..texts.encoding import text_concentration
from ..training.arguments import AsymVLMTrainingArguments
from .parser import ARGUMENT_FILES, CommandParser, flags_in_file, with_underscores
from .train import run, training_parser


# The flags of `train` that name other data or another backbone, or say how they are read.
NOT_TAKEN = {
    "--model_name_or_path",
    "--model_revision",
    "--trust_remote_code",
    "--dataset_name_or_path",
    "--dataset_config_name",
    "--embeddings",
    "--image_folder",
    "--streaming",
    "--image_column",
    "--caption_column",
    "--image_id_column",
}
DEFAULT_FOLDER = Path(AsymVLMTrainingArguments.output_dir)
TEXTS = ("a picture", "a red shape", "a small red circle", "a small red circle at the top left on a dark background")


def command_parser() -> CommandParser:
    """The flags of the command."""
    parser = training_parser("example", __doc__ or "")
    parser.hide(NOT_TAKEN)
    return parser


def show(folder: Path, results: dict[str, Any]) -> None:
    """Prints how uncertain some texts are, and where to look further."""
    model = AutoModel.from_pretrained(folder)
    if model.config.law.has_concentration:
        concentration = text_concentration(model, AutoProcessor.from_pretrained(folder), TEXTS)
        print("1/kappa, the uncertainty of a text:")
        for text, uncertainty in zip(TEXTS, 1 / concentration, strict=True):
            print(f"  {uncertainty:.4f}  {text}")
    named = "" if folder == DEFAULT_FOLDER else f" --model {folder}"
    print(f'\nNext: `asymvlm demo{named}` opens a page on it, `asymvlm search "{TEXTS[2]}"{named}` finds pictures.')


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = command_parser()
    with parser.failing(ValueError, OSError, yaml.YAMLError):
        in_file = len(arguments) == 1 and Path(arguments[0]).suffix in ARGUMENT_FILES
        words = flags_in_file(Path(arguments[0])) if in_file else arguments
    taken = [flag for word in words if (flag := with_underscores(word).partition("=")[0]) in NOT_TAKEN]
    if taken:
        parser.fail(f"{taken[0]} is of other data or another backbone: use `train`.")
    finished = run(arguments, parser)
    if finished is not None and not finished.json:
        show(finished.folder, finished.results)
    return 0
