"""Figures of a trained model on the test split of some data, without training.

    python -m modeling_asymvlm evaluate --model_name_or_path outputs/mine --embeddings features/ --output_dir figures/
    python -m modeling_asymvlm evaluate --model_name_or_path outputs/mine --dataset_name_or_path captions.jsonl

Takes the arguments of `train` that speak of a model and of data. Figures in the folder of the model itself replace
those that are there, with the card.
"""

from .parser import CommandParser
from .train import main as train
from .train_arguments import DataArguments, ModelArguments


INTERRUPTED = "no figures were written."


def main(arguments: list[str]) -> int:
    """The command, which is `train --do_eval`; returns its exit code."""
    if {"-h", "--help"} & set(arguments):
        CommandParser("evaluate", __doc__ or "", [ModelArguments, DataArguments]).print_help()
        return 0
    return train([*arguments, "--do_eval"], command="evaluate")
