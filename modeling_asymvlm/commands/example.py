"""Trains on the embedded Scenes example, which is generated here and needs no network.

    python -m modeling_asymvlm example
    python -m modeling_asymvlm example --output_dir outputs/scenes --distribution vmf

Generated pictures of one shape, captions that name a random subset of its attributes, and a tiny CLIP beside them. All
arguments of `train` but those of data and backbone are taken.
"""

from .parser import CommandParser
from .train import main as train


INTERRUPTED = "--resume_from_checkpoint last goes on."


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    if {"-h", "--help"} & set(arguments):
        CommandParser("example", __doc__ or "").print_help()
        return 0
    taken = [word for word in arguments if word.split("=")[0] in ("--dataset_name_or_path", "--embeddings")]
    if taken:
        CommandParser("example", __doc__ or "").error(f"{taken[0]} names other data: use `train`.")
    return train(arguments, command="example")
