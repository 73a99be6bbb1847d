"""Figures of a trained model on the test split of some data, without training.

    asymvlm evaluate --model_name_or_path outputs/mine --embeddings features/ --output_dir figures/
    asymvlm evaluate --model_name_or_path outputs/mine --dataset_name_or_path captions.jsonl

Takes the arguments of `train`. Figures in the folder of the model itself replace those that are there, with the card.
"""

from .parser import CommandParser
from .train import run, training_parser
from .train_arguments import DataArguments, ModelArguments, names_of


SHOWN = {"model_name_or_path", "model_revision", "trust_remote_code", "dtype", "output_dir", *names_of(DataArguments)}


def command_parser() -> CommandParser:
    """The flags of the command."""
    parser = training_parser("evaluate", __doc__ or "")
    parser.rare |= names_of(ModelArguments) | {action.dest for action in parser._actions}
    parser.rare -= {*SHOWN, "help"} - {"held_out_fraction"}
    return parser


def main(arguments: list[str]) -> int:
    """The command, which is `train --do_eval`; returns its exit code."""
    run([*arguments, "--do_eval"], command_parser())
    return 0
