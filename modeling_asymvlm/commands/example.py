"""Trains on the embedded Scenes example, which is generated here and needs no network.

    python -m modeling_asymvlm example
    python -m modeling_asymvlm example --output_dir outputs/scenes --distribution vmf

Generated pictures of one shape, captions that name a random subset of its attributes, and a tiny CLIP beside them. All
arguments of `train` but those of data and backbone are taken.
"""

from pathlib import Path

import yaml

from .parser import ARGUMENT_FILES, CommandParser, flags_in_file, with_underscores
from .train import main as train


INTERRUPTED = "--resume_from_checkpoint last goes on."

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


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = CommandParser("example", __doc__ or "")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    with parser.failing(ValueError, OSError, yaml.YAMLError):
        in_file = len(arguments) == 1 and Path(arguments[0]).suffix in ARGUMENT_FILES
        words = flags_in_file(Path(arguments[0])) if in_file else arguments
    taken = [flag for word in words if (flag := with_underscores(word).partition("=")[0]) in NOT_TAKEN]
    if taken:
        parser.fail(f"{taken[0]} is of other data or another backbone: use `train`.")
    return train(arguments, command="example")
