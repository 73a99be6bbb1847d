"""What a user must know of the pairs, of the run and of the head that is kept, in sentences; and what ends a run."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from torch import nn

from ..store.embedding_store import EmbeddingSplit
from .schedule import SMALLEST_NUM_STEPS


FEWEST_TRAINING_PAIRS = 100
FEWEST_VALIDATION_IMAGES = 50
ROWS_LOOKED_AT = 50_000
PAIRS_COMPARED = 1_000_000  # texts of more are not read into memory


def check_datasets(train: Any, evaluation: Any) -> None:
    """Raises `ValueError` for pairs without a number or an order of their own, and for several sets to evaluate on."""
    for name, pairs in (("train_dataset", train), ("eval_dataset", evaluation)):
        if isinstance(pairs, Mapping):
            raise ValueError(
                f"{name} must be one set of pairs, not a dictionary of {', '.join(map(str, pairs))}: one chooses "
                "the head. Evaluate on the others afterwards with trainer.evaluate(pairs, metric_key_prefix=name)."
            )
        if pairs is not None and not (isinstance(pairs, Sized) and hasattr(pairs, "__getitem__")):
            raise ValueError(
                f"{name} must have a length and items by number, which {type(pairs).__name__} lacks: the order of the "
                "pairs depends on the seed alone. Cache a stream with cached_features first."
            )


def pair_warnings(splits: Mapping[str, EmbeddingSplit]) -> list[str]:
    """
    What is doubtful about the pairs, one sentence each. Features are looked at in the first 50,000 rows, and
    captions of up to a million pairs.

    Args:
        splits (`Mapping[str, EmbeddingSplit]`): any of `train`, `validation` and `test`.

    Raises:
        ValueError: if all features of a kind are equal in a split: nothing can be told apart by them.
    """
    found = []
    if "train" in splits and (pairs := len(splits["train"].text_image_index)) < FEWEST_TRAINING_PAIRS:
        found.append(
            f"There are only {pairs} training pairs: below {FEWEST_TRAINING_PAIRS}, what a head learns is mostly "
            "chance."
        )
    if "validation" in splits and (images := len(splits["validation"].image_ids)) < FEWEST_VALIDATION_IMAGES:
        found.append(
            f"There are only {images} validation images: below {FEWEST_VALIDATION_IMAGES}, the choice of the head and "
            "its temperature are mostly chance."
        )
    for name, split in splits.items():
        found += _split_warnings(name, split)
    return found


def leak_warnings(train: EmbeddingSplit, test: EmbeddingSplit) -> list[str]:
    """Whether images of the test split, of its first 50,000, have the features of one that is trained on."""
    known = set(_rows(train))
    shared = [row in known for row in _rows(test)]
    if not any(shared):
        return []
    return [
        f"{sum(shared)} of {len(shared)} test images have the very features of a training image: the test figures are "
        "too good."
    ]


def _split_warnings(name: str, split: EmbeddingSplit) -> list[str]:
    found = []
    for kind, matrix in (("text", split.text_features), ("image", split.image_features)):
        features = matrix[:ROWS_LOOKED_AT]
        if len(features) > 1 and bool((features == features[0]).all()):
            raise ValueError(
                f"All {len(matrix)} {kind}_features of the split {name!r} are equal, so that they tell nothing apart: "
                "make them again, from the right column and with the backbone's own processor."
            )
        zero = int((features == 0).all(dim=1).sum())
        if zero:
            found.append(
                f"{zero} of {len(features)} {kind}_features of the split {name!r} are zero: without direction."
            )
    if len(split.text_image_index) > 1 and len(split.text_image_index.unique()) == 1:
        found.append(f"All pairs of the split {name!r} are of one image: there is nothing to contrast it with.")
    if len(split.text_image_index) <= PAIRS_COMPARED:
        pairs = list(zip(split.text_image_index.tolist(), split.captions, strict=True))
        repeated = len(pairs) - len(set(pairs))
        if repeated:
            found.append(
                f"{repeated} of {len(pairs)} pairs of the split {name!r} repeat caption and image of another."
            )
    return found


def _rows(split: EmbeddingSplit) -> list[bytes]:
    return [row.tobytes() for row in split.image_features[:ROWS_LOOKED_AT].numpy()]


def run_warnings(steps: int) -> list[str]:
    """What is doubtful about a run of so many optimiser steps."""
    if steps >= SMALLEST_NUM_STEPS:
        return []
    return [
        f"Training takes {steps} optimiser steps, where {SMALLEST_NUM_STEPS} are the least that was found to work: "
        "leave num_train_epochs and max_steps out, or raise them."
    ]


def kept_warnings(step: int, at_bound: bool, num_pairs: int, *, starts_as_backbone: bool) -> list[str]:
    """
    What must be known of the head that is kept.

    Args:
        step (`int`): after which it was judged.
        at_bound (`bool`): whether the validation pairs were all told apart, see [`fit_temperature`].
        num_pairs (`int`): validation pairs that the temperature was fitted on.
        starts_as_backbone (`bool`): whether an untrained head is the backbone with one concentration.
    """
    found = []
    if step == 0:
        untrained = (
            "the backbone's own direction with one concentration for all texts"
            if starts_as_backbone
            else "as it began"
        )
        found.append(f"No trained head was better on validation than the untrained one, which is kept: {untrained}.")
    if at_bound:
        found.append(
            f"All {num_pairs} validation pairs are told apart, so that no temperature is too high for them: the head "
            f"got that at which the validation loss is 1/{num_pairs + 1}. Use more, or harder, validation data."
        )
    return found


def comparison_warnings(differences: Mapping[str, Sequence[float]], split: str = "test") -> list[str]:
    """
    Where a head is worse than its backbone by more than chance.

    Args:
        differences (`Mapping[str, Sequence[float]]`):
            95 % intervals `[low, high]` of the paired bootstrap of head minus backbone, by the name of the figure; of
            names that end in `negative_log_likelihood` less is better, of all others more.
        split (`str`, *optional*, defaults to `"test"`): whose figures these are.
    """
    found = []
    for name, (low, high) in differences.items():
        worse = low > 0 if name.endswith("negative_log_likelihood") else high < 0
        if worse:
            figure = name.replace("_", " ")
            found.append(
                f"The head is worse than its backbone on the {split} split: {figure} differs by {low:+.4f} to "
                f"{high:+.4f} (95 % interval). Use the backbone's cosine, or train on more captions like these."
            )
    return found


def diverged(what: str, step: int, learning_rate: float) -> ValueError:
    """The error that ends a run whose figures are not finite; `what` says which."""
    return ValueError(
        f"Training diverged: {what} at step {step}, at a learning rate of {learning_rate:.3g}. Lower learning_rate "
        "(2e-3 is the default) or weight_decay, and look at the scale of the features, initial_concentration and "
        "logit_scale_init."
    )


def check_weights(model: nn.Module | Any, step: int, learning_rate: float) -> None:
    """Raises `ValueError` if a parameter that learns is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise diverged(f"{name} is NaN or infinite, and nothing is saved of it,", step, learning_rate)
