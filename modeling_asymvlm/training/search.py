"""A short search over regularisation: which dropout and weight decay a set of pairs needs."""

import copy
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PrinterCallback, set_seed
from transformers.trainer_utils import SaveStrategy

from ..model.modeling_asymvlm import AsymVLMModel
from ..store.embedding_store import EmbeddingSplit
from .arguments import AsymVLMTrainingArguments
from .batches import FeaturePairs
from .trainer import AsymVLMTrainer


# Tried beside what the head and its training were given, from which each differs in what it names.
CANDIDATES: tuple[dict[str, float], ...] = (
    {"hidden_dropout_prob": 0.2, "input_dropout_prob": 0.2},
    {"hidden_dropout_prob": 0.7, "input_dropout_prob": 0.5},
    {"weight_decay": 0.1},
    {"weight_decay": 10.0},
)
DROPOUTS = ("hidden_dropout_prob", "input_dropout_prob")
ENOUGH_VALIDATION_IMAGES = 200
MOST_PAIRS_OF_FOLDS = 20_000
NUM_FOLDS = 5


class _QuietTrainer(AsymVLMTrainer):
    def warn(self, sentence: str) -> None:
        """Nothing: the run with what was chosen says it."""


def search_regularisation(
    model: AsymVLMModel,
    train: EmbeddingSplit,
    validation: EmbeddingSplit,
    training: AsymVLMTrainingArguments,
) -> dict[str, Any]:
    """
    Trains a head with each of a few settings of dropout and weight decay, and compares the lowest validation loss at
    a fitted temperature. With fewer than 200 validation images, and up to 20,000 pairs, it is the mean over five folds
    of the images of both splits.

    Args:
        model (`AsymVLMModel`): whose head it is; it is not changed.
        train, validation (`EmbeddingSplit`): cached features.
        training (`AsymVLMTrainingArguments`): of each run.

    Returns:
        `chosen`, `tried`, each with `hidden_dropout_prob`, `input_dropout_prob` and `weight_decay` and the latter with
        its `loss` in nats, and the number of `folds`, 1 where the validation split decided.
    """
    given = {name: getattr(model.config, name) for name in DROPOUTS} | {"weight_decay": training.weight_decay}
    num_pairs = len(train.text_image_index) + len(validation.text_image_index)
    few = len(validation.image_ids) < ENOUGH_VALIDATION_IMAGES and num_pairs <= MOST_PAIRS_OF_FOLDS
    parts = _folds(train, validation, training.seed) if few else [(train, validation)]
    tried: list[dict[str, float]] = []
    for candidate in ({}, *CANDIDATES):
        setting = {**given, **candidate}
        if any(setting.items() <= known.items() for known in tried):
            continue
        losses = [_validation_loss(model.config, setting, *part, training) for part in parts]
        tried.append({**setting, "loss": float(np.mean(losses))})
    best = min(tried, key=lambda entry: entry["loss"])
    return {"chosen": {name: best[name] for name in given}, "tried": tried, "folds": len(parts)}


def use_regularisation(model: AsymVLMModel, training: AsymVLMTrainingArguments, setting: dict[str, float]) -> None:
    """Sets dropout of a head and weight decay of its training."""
    for name in DROPOUTS:
        setattr(model.config, name, setting[name])
    model.text_head.dropout.p = setting["hidden_dropout_prob"]
    model.text_head.input_dropout.p = setting["input_dropout_prob"]
    training.weight_decay = setting["weight_decay"]


def _validation_loss(
    config: PreTrainedConfig,
    setting: dict[str, float],
    train: EmbeddingSplit,
    validation: EmbeddingSplit,
    training: AsymVLMTrainingArguments,
) -> float:
    set_seed(training.seed)
    head_alone: Any = copy.deepcopy(config)
    head_alone.vlm_config = None
    model, arguments = AsymVLMModel(head_alone), copy.copy(training)
    use_regularisation(model, arguments, setting)
    arguments.save_strategy, arguments.load_best_model_at_end = SaveStrategy.NO, False
    with tempfile.TemporaryDirectory() as folder:
        arguments.output_dir = folder
        trainer = _QuietTrainer(
            model=model,
            args=arguments,
            train_dataset=FeaturePairs(train),
            eval_dataset=FeaturePairs(validation),
            data_collator=FeaturePairs.collate,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return float(trainer.state.best_metric)  # type: ignore[arg-type]


def _folds(
    train: EmbeddingSplit, validation: EmbeddingSplit, seed: int
) -> list[tuple[EmbeddingSplit, EmbeddingSplit]]:
    """Both splits together, cut into training and validation images five times."""
    whole = pooled(train, validation)
    fold_of_image = np.random.default_rng(seed).permutation(len(whole.image_ids)) % NUM_FOLDS
    return [
        (images_of(whole, fold_of_image != fold), images_of(whole, fold_of_image == fold)) for fold in range(NUM_FOLDS)
    ]


def pooled(*splits: EmbeddingSplit) -> EmbeddingSplit:
    """All pairs of these splits, which share no image."""
    offsets = np.cumsum([0, *(len(split.image_ids) for split in splits)])
    return EmbeddingSplit(
        [name for split in splits for name in split.image_ids],
        torch.cat([split.image_features[:] for split in splits]),
        [caption for split in splits for caption in split.captions],
        torch.cat([split.text_features[:] for split in splits]),
        torch.cat([split.text_image_index + int(offset) for split, offset in zip(splits, offsets[:-1], strict=True)]),
    )


def images_of(split: EmbeddingSplit, kept: np.ndarray) -> EmbeddingSplit:
    """The images that a mask of shape `(images,)` keeps, with all their captions."""
    images = np.flatnonzero(kept)
    row_of_image = torch.from_numpy(np.cumsum(kept) - 1)
    texts = np.flatnonzero(kept[np.asarray(split.text_image_index)])
    return EmbeddingSplit(
        [split.image_ids[row] for row in images.tolist()],
        split.image_features[torch.from_numpy(images)],
        [split.captions[row] for row in texts.tolist()],
        split.text_features[torch.from_numpy(texts)],
        row_of_image[split.text_image_index[torch.from_numpy(texts)]],
    )
