"""The arguments of the training command that are not of the training itself: backbone, head and data."""

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from ..model.configuration_asymvlm import AsymVLMConfig
from ..pairs.layouts import load_pairs
from ..pairs.sources import PairSource
from ..reporting.run_files import data_record
from ..scenes.places import DATASET, LICENSE


LAUNCHER = ("asymvlm", "train")

# The flags of those arguments of the library that have another name here.
FLAGS = {
    "name_or_path": "dataset_name_or_path",
    "config_name": "dataset_config_name",
    "batch_size": "embedding_batch_size",
}


# The arguments of `AsymVLMTrainingArguments` that help lists; the others are the Trainer's, or best left as they are.
COMMON_TRAINING = {
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "global_train_batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "eval_steps",
    "early_stopping_patience",
    "one_caption_per_image",
    "same_image_negatives",
    "tile_size",
    "resume_from_checkpoint",
    "seed",
    "bf16",
}


def names_of(arguments: type) -> set[str]:
    """The names of the arguments of a dataclass."""
    return {item.name for item in fields(arguments) if item.init}


def _of_the_head(name: str, help_text: str) -> Any:
    """A field whose default is that of the configuration."""
    default = inspect.signature(AsymVLMConfig.__init__).parameters[name].default
    return field(default=default, metadata={"help": help_text})


@dataclass
class ModelArguments:
    """The frozen backbone and the head on it."""

    _argument_group_name = "backbone and head"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Backbone: a Hub repository or a folder. Default: the tiny CLIP of Scenes."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the backbone."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code from the backbone's repository, for backbones that need it."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the backbone; the head is float32 always."}
    )
    distribution: Literal["power_spherical", "vmf", "deterministic"] = _of_the_head(
        "distribution", "Distribution of a text on the unit hypersphere."
    )
    mean_direction: Literal["learned", "refined", "backbone"] = _of_the_head(
        "mean_direction",
        "Learn the mean direction afresh, refine the backbone's, or keep it with its text-to-image ranking.",
    )
    normalizer: Literal["exact", "paper"] = _of_the_head(
        "normalizer", "Log-normaliser: exact, or the approximation of the reference code."
    )
    recipe: Literal["default", "learned", "paper"] = field(
        default="default",
        metadata={
            "help": "Defaults of the head and its training: for any amount of data, for a direction that is learned "
            "afresh, or the paper's. What is given besides wins."
        },
    )
    search: bool = field(
        default=False,
        metadata={
            "help": "Choose dropout and weight decay among a few on validation first; cross-validated where there are "
            "fewer than 200 validation images."
        },
    )
    hidden_size: int = _of_the_head("hidden_size", "Width of the head's hidden layers.")
    num_hidden_layers: int = _of_the_head(
        "num_hidden_layers", "Number of the head's hidden layers; the paper's head has 3, which overfits sooner."
    )
    hidden_dropout_prob: float = _of_the_head("hidden_dropout_prob", "Dropout after each hidden layer, in [0, 1).")
    input_dropout_prob: float = _of_the_head("input_dropout_prob", "Dropout on the head's input, in [0, 1).")
    normalize_text_features: bool = _of_the_head(
        "normalize_text_features", "Give the head the direction of the text features, without their length."
    )
    initial_concentration: float = _of_the_head(
        "initial_concentration", "kappa before training, with --mean_direction refined or backbone."
    )
    logit_scale_init: float = _of_the_head("logit_scale_init", "Temperature tau before training.")

    def head_kwargs(self) -> dict[str, Any]:
        """The arguments of `AsymVLMConfig` among these."""
        of_the_head = inspect.signature(AsymVLMConfig.__init__).parameters
        return {name: value for name, value in vars(self).items() if name in of_the_head}


@dataclass
class DataArguments:
    """The pairs of images and captions, or their cached features."""

    _argument_group_name = "data"

    dataset_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Pairs: a JSON, JSON Lines, CSV or parquet file, a folder of them named train, validation and "
            "test, an image folder with metadata.jsonl, webdataset shards, the caption files of COCO, Karpathy or "
            "Flickr, or a Hub data set (docs/layouts.md). Default: the generated Scenes."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder that paths of images are relative to. Default: beside the file that names them."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read table files and Hub data sets as they come, without a copy in the cache of datasets."},
    )
    embeddings: str | None = field(
        default=None,
        metadata={
            "help": "Instead of pairs, a folder of cached features: images/ and captions/ with SPLIT.parquet. "
            "`asymvlm convert` makes one of clip-retrieval's."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images or their paths."})
    caption_column: str | None = field(
        default=None, metadata={"help": "Column of a caption or a list of them. Default: caption, captions or text."}
    )
    image_id_column: str = field(
        default="image_id", metadata={"help": "Column that tells which rows share an image; may be missing."}
    )
    held_out_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training images for each of validation and test that is missing."}
    )
    skip_broken_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read, and count them, instead of stopping."}
    )
    embedding_batch_size: int = field(default=256, metadata={"help": "Images or captions in the backbone at a time."})
    embedding_dtype: Literal["auto", "float32", "float16", "bfloat16"] = field(
        default="auto", metadata={"help": "Of the cached features; auto is the backbone's, and float32 at most."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the results in a non-empty --output_dir."}
    )
    json: bool = field(
        default=False, metadata={"help": "Print what all_results.json holds, and nothing else, on standard output."}
    )

    def embedding_kwargs(self) -> dict[str, Any]:
        """The arguments of [`cached_features`] among these."""
        return {
            "batch_size": self.embedding_batch_size,
            "dtype": None if self.embedding_dtype == "auto" else getattr(torch, self.embedding_dtype),
            "skip_broken_images": self.skip_broken_images,
        }

    def check_values(self) -> None:
        """Raises `ValueError` for a value out of range."""
        if not 0 < self.held_out_fraction < 0.5:
            raise ValueError(f"--held_out_fraction must lie between 0 and 0.5, got {self.held_out_fraction}.")
        if self.embedding_batch_size < 1:
            raise ValueError(f"--embedding_batch_size must be at least 1, got {self.embedding_batch_size}.")

    def load_pairs(self, name_or_path: str, seed: int) -> dict[str, PairSource]:
        """The pairs of train, validation and test, read as these arguments say."""
        return load_pairs(
            name_or_path,
            config_name=self.dataset_config_name,
            image_column=self.image_column,
            caption_column=self.caption_column,
            image_id_column=self.image_id_column,
            image_folder=self.image_folder,
            streaming=self.streaming,
            held_out_fraction=self.held_out_fraction,
            seed=seed,
        )

    def record(self, arguments: list[str]) -> dict[str, Any]:
        """What a card says of these data and the command, of [`data_record`]."""
        source = self.dataset_name_or_path or self.embeddings
        command = [*LAUNCHER, *arguments]
        if source is None:
            return data_record(DATASET, command, license=LICENSE)
        on_the_hub = source == self.dataset_name_or_path and not Path(source).exists()
        return data_record(Path(source).stem, command, dataset_id=source if on_the_hub else None)
