"""What a checkpoint of training knows of its run, `run.json`: data, head, recipe, seed and cost, and its own files."""

import hashlib
import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

from ..utils.durable_files import sha256_of
from ..utils.json_files import read_record, write_record
from .batches import FeaturePairs


RUN_FILE = "run.json"
FORMAT = 1
REMEDY = "Go on from another checkpoint-N folder of the run, or start anew."
ROWS_AT_A_TIME = 8192

# Of the arguments, those on which the weights depend; more steps are what one goes on for.
RECIPE = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "same_image_negatives",
    "one_caption_per_image",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
)
# Of a configuration, what says where a backbone lies and which version wrote it.
NOT_OF_THE_HEAD = ("base_model_name_or_path", "base_model_revision", "transformers_version", "dtype", "save_backbone")


def run_identity(config: Any, args: Any, train: Any, evaluation: Any) -> dict[str, Any]:
    """
    What two runs must share for one to go on from a checkpoint of the other; reads all features once.

    Args:
        config (`PreTrainedConfig`): of the model.
        args (`TrainingArguments`): as resolved for the pairs.
        train, evaluation: the data sets.
    """
    head = {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, bool | int | float | str) and name not in NOT_OF_THE_HEAD and not name.startswith("_")
    }
    recipe = {name: _plain(getattr(args, name)) for name in RECIPE}
    recipe["global_train_batch_size"] = args.train_batch_size * args.world_size
    return {"train_pairs": _fingerprint(train), "validation_pairs": _fingerprint(evaluation), **head, **recipe}


def write_run(folder: Path, identity: dict[str, Any], seconds: dict[str, float]) -> None:
    """Notes in a finished checkpoint its run, what that cost until then, and the SHA-256 of each of its files."""
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    write_record(folder / RUN_FILE, {"run": identity, "seconds": seconds, "files": files}, format=FORMAT)


def read_run(folder: Path) -> dict[str, Any]:
    """
    What [`write_run`] noted, after all files were compared with it.

    Raises:
        FileNotFoundError: if the folder is no checkpoint of training.
        ValueError: if a file is missing, or not as it was written.
    """
    if not (folder / RUN_FILE).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {RUN_FILE}: training goes on only from a checkpoint-N folder of a run."
        )
    record = read_record(folder / RUN_FILE, format=FORMAT, remedy=REMEDY)
    for name, written in record["files"].items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"The checkpoint {str(folder)!r} is incomplete: it has no {name}. {REMEDY}")
        if file.stat().st_size != written["size"] or sha256_of(file) != written["sha256"]:
            raise ValueError(f"The checkpoint {str(folder)!r} is damaged: {name} is not as it was written. {REMEDY}")
    return record


def check_same_run(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `ValueError`, which names what differs, if a checkpoint is of another run than the present one."""
    now = json.loads(json.dumps(now))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        differences = "; ".join(
            f"it saw other {name.replace('_', ' ')}"
            if name.endswith("_pairs")
            else f"{name} was {then.get(name)}, not {now.get(name)}"
            for name in names
        )
        raise ValueError(
            f"The checkpoint {str(folder)!r} is of another run: {differences}. Go on with the data and arguments of "
            "that run, or start anew."
        )


def _fingerprint(pairs: Any) -> str | None:
    if not isinstance(pairs, FeaturePairs):
        length = len(pairs) if isinstance(pairs, Sized) else None
        return None if pairs is None else f"{type(pairs).__name__} {length} {getattr(pairs, '_fingerprint', '')}"
    split = pairs.split
    digest = hashlib.sha256(json.dumps([list(split.image_ids), list(split.captions)]).encode())
    digest.update(split.text_image_index.contiguous().numpy().data)
    for features in (split.image_features, split.text_features):
        for start in range(0, len(features), ROWS_AT_A_TIME):
            digest.update(features[start : start + ROWS_AT_A_TIME].float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else str(getattr(value, "value", value))
