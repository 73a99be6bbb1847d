"""Everything that can be known to be wrong with the arguments of training before anything is loaded."""

from contextlib import AbstractContextManager
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from ..model.configuration_asymvlm import AsymVLMConfig
from ..pairs.layouts import DATA_SUFFIXES
from ..pairs.splits import SPLITS
from ..store.embedding_store import EmbeddingStore
from ..training.arguments import AsymVLMTrainingArguments
from ..training.selection import check_metric
from ..utils.checks import is_missing_path
from ..utils.locks import exclusive
from .train_arguments import DataArguments, ModelArguments


def check_arguments(model: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments) -> None:
    """Raises `ValueError` or `FileNotFoundError` for arguments that are wrong; changes none of them."""
    AsymVLMConfig(projection_dim=2, **model.head_kwargs())
    check_metric(training, has_own_metrics=False)
    _check_features(model, data, training)
    _check_sources(model, data, training)
    _check_paths(model, data)
    data.check_values()
    if training.n_gpu > 1:
        raise ValueError(f"one process sees {training.n_gpu} GPUs: start one process a GPU with `accelerate launch`.")
    _check_output(model, data, training)


def resumed_checkpoint(model: ModelArguments, training: AsymVLMTrainingArguments) -> str | None:
    """
    The folder of the checkpoint that training goes on from, or `None` for the start.

    Raises:
        ValueError: for a checkpoint outside of the run's folder, or of another head than the run began with.
    """
    asked, folder = training.resume_from_checkpoint, Path(str(training.output_dir))
    if asked == "last":
        asked = get_last_checkpoint(folder) if folder.is_dir() else None
    if asked is None:
        return None
    checkpoint = Path(asked)
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"--resume_from_checkpoint: {str(checkpoint)!r} is not the folder of a checkpoint.")
    if checkpoint.resolve().parent != folder.resolve():
        raise ValueError(f"--resume_from_checkpoint {str(checkpoint)!r} is not in --output_dir {str(folder)!r}.")
    saved = AsymVLMConfig.from_pretrained(checkpoint)
    for name, value in model.head_kwargs().items():
        if getattr(saved, name) != value:
            raise ValueError(f"the checkpoint was trained with --{name} {getattr(saved, name)}, not {value}.")
    return str(checkpoint)


def alone_in_folder(folder: Path) -> AbstractContextManager[None]:
    """A context in which no other run of this command writes to a folder. Raises `TimeoutError` if one does now."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = (
        f"--output_dir {str(folder)!r} is in use by another run: wait for its end, or name another folder. A run that "
        "was killed does not count."
    )
    return exclusive(folder.with_name(f".{folder.name}.run.lock"), busy)


def _check_features(model: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments) -> None:
    if data.embeddings is None:
        return
    if data.dataset_name_or_path is not None:
        raise ValueError("--embeddings and --dataset_name_or_path exclude each other: pass cached features or pairs.")
    store = EmbeddingStore(data.embeddings)
    needed = ("test",) if training.evaluate_only else SPLITS
    missing = [split for split in needed if split not in store.splits]
    if missing:
        raise ValueError(f"--embeddings {data.embeddings!r} has no split {' and no split '.join(missing)}.")
    normalized = bool((store.fingerprint or {}).get("normalized"))
    if normalized and model.model_name_or_path is not None and not training.evaluate_only:
        raise ValueError(
            f"--embeddings {data.embeddings!r} holds features of unit length, as a backbone does not give them: "
            "leave --model_name_or_path off, and give the head normalised features."
        )


def _check_sources(model: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments) -> None:
    if training.evaluate_only and model.model_name_or_path is None:
        raise ValueError("--do_eval without --do_train needs a trained model: pass --model_name_or_path.")
    if data.image_folder is not None and not Path(data.image_folder).is_dir():
        raise ValueError(f"--image_folder: there is no folder {data.image_folder!r}.")
    if data.dataset_name_or_path is None and (data.image_folder is not None or data.streaming):
        raise ValueError("--image_folder and --streaming say how --dataset_name_or_path is read: pass that too.")
    if data.dataset_name_or_path is not None and model.model_name_or_path is None:
        raise ValueError("--dataset_name_or_path needs a backbone: pass --model_name_or_path.")


def _check_paths(model: ModelArguments, data: DataArguments) -> None:
    named = {
        "model_name_or_path": model.model_name_or_path,
        "dataset_name_or_path": data.dataset_name_or_path,
    }
    for name, value in named.items():
        if value is not None and is_missing_path(value, DATA_SUFFIXES):
            raise ValueError(f"--{name}: there is no file or folder {value!r}.")


def _check_output(model: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments) -> None:
    folder = Path(str(training.output_dir))
    if folder.is_file():
        raise ValueError(f"--output_dir {str(folder)!r} is a file.")
    if training.resume_from_checkpoint is not None or not folder.is_dir():
        return
    figures_alone = training.evaluate_only and folder.resolve() == Path(str(model.model_name_or_path)).resolve()
    if training.process_index == 0:
        with alone_in_folder(folder):
            pass
    if any(folder.iterdir()) and not (data.overwrite_output_dir or figures_alone):
        raise ValueError(
            f"--output_dir {str(folder)!r} is not empty: choose another, or pass --overwrite_output_dir, or "
            "--resume_from_checkpoint last to go on."
        )
