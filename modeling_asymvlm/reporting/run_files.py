"""What a run leaves beside the model: its figures, plots and card, and the record of where they come from."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_matplotlib_available

from ..calibration.calibration import Calibration
from ..calibration.calibration_files import CALIBRATION_FILE, TENSORS_FILE
from ..calibration.corpus import text_embeds_of
from ..calibration.fitting import MIN_HELD_OUT
from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.modeling_asymvlm import AsymVLMModel
from ..store.embedding_store import EmbeddingSplit
from ..training.checks import comparison_warnings
from .model_card import PLOTS, model_card, write_model_card
from .results import RESULTS_FILE, read_results, write_results
from .usage_example import choose_texts, run_example, usage_example


def data_record(
    dataset: str, command: Sequence[str], *, dataset_id: str | None = None, license: str | None = None
) -> dict[str, Any]:
    """
    Which data a run saw, and its command, without folders of this machine.

    Args:
        dataset (`str`): their name.
        command (`Sequence[str]`): with its arguments.
        dataset_id (`str`, *optional*): their name on the Hub.
        license (`str`, *optional*): of a head that is trained on them, as the Hub names it.
    """
    return {
        "dataset": dataset,
        "dataset_id": dataset_id,
        "license": license,
        "command": shlex.join(map(without_folder, command)),
    }


def training_record(
    data: dict[str, Any], training: TrainingArguments, train: EmbeddingSplit, steps: int, time: dict[str, float]
) -> dict[str, Any]:
    """
    What was trained on, with which command and at what cost, for the model card; `data` of [`data_record`], `time` in
    seconds of `features` and `training`.
    """
    is_cuda = training.device.type == "cuda"
    return {
        **data,
        "num_images": len(train.image_ids),
        "num_captions": len(train.captions),
        "steps": steps,
        "epochs": training.num_train_epochs,
        "machine": torch.cuda.get_device_name() if is_cuda else f"a CPU with {os.cpu_count()} cores",
        "time": time,
    }


def save_figures(folder: Path, results: dict[str, Any]) -> None:
    """Writes `all_results.json` and the plots of its entry `test`, of [`evaluate_split`], into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        (folder / name).unlink(missing_ok=True)
    test = results["test"]
    if "posterior" in test and is_matplotlib_available():
        from .plots import calibration_plot, reliability_plot, risk_coverage_plot

        panels = {f"1/kappa, {name}": metrics for name, metrics in test.get("uncertainty", {}).items()}
        directions = {name: test["posterior"][name] for name in ("text_to_image", "image_to_text")}
        panels |= {f"posterior, {name}": metrics for name, metrics in directions.items()}
        reliability_plot(panels, folder / "reliability.png", title="R@1 against uncertainty level, test split")
        names = {"uncertainty": "1/kappa", "posterior": "posterior"}
        roles = test["risk_coverage"].items()
        curves = {f"{names[role]}, {name}": curve for role, of_role in roles for name, curve in of_role.items()}
        risk_coverage_plot(curves, folder / "risk_coverage.png", title="Risk against coverage, test split")
        calibration = {name: metrics["calibration"] for name, metrics in directions.items()}
        title = "Is the retrieval posterior a probability? Test split"
        calibration_plot(calibration, folder / "calibration.png", title=title)
    elif "posterior" in test:
        print("No plots: matplotlib is not installed (extra `plots`).")
    write_results(folder / RESULTS_FILE, results)


def calibrate(
    folder: Path, model: AsymVLMModel, train: EmbeddingSplit, validation: EmbeddingSplit, data: dict[str, Any]
) -> tuple[Calibration | None, list[str]]:
    """
    Calibrates a head on training and validation pairs, and writes that beside the model.

    Args:
        folder (`Path`): of the model; an older calibration in it goes.
        model (`AsymVLMModel`): in evaluation mode.
        train, validation (`EmbeddingSplit`): as of [`Calibration.fit`].
        data (`dict`): of [`data_record`].

    Returns:
        The calibration, `None` where the validation split is too small for one, and what the user must know.
    """
    for name in (CALIBRATION_FILE, TENSORS_FILE):
        (folder / name).unlink(missing_ok=True)
    if min(len(validation.captions), len(validation.image_ids)) < MIN_HELD_OUT:
        return None, [
            f"There is no calibration: the validation split has {len(validation.captions)} captions of "
            f"{len(validation.image_ids)} images, and at least {MIN_HELD_OUT} of both are needed."
        ]
    calibration = Calibration.fit(model, train, validation, corpus=f"validation captions of {data['dataset']}")
    calibration.save_pretrained(folder)
    return calibration, [
        f"{name} is not to be trusted here: {worth.reason}."
        for name, worth in calibration.measured.items()
        if worth.reason is not None
    ]


def saved_calibration(checkpoint: str, model: AsymVLMModel) -> Calibration | None:
    """The calibration in the folder of a checkpoint, or `None` where there is none. Raises `ValueError` as loading."""
    if not (Path(checkpoint) / CALIBRATION_FILE).is_file():
        return None
    return Calibration.from_pretrained(checkpoint, model=model)


def figure_warnings(test: dict[str, Any]) -> list[str]:
    """What the figures of [`evaluate_split`] say that a user must know: worse than the backbone, or no confidence."""
    differences = {name: each["interval"] for name, each in test.get("differences_to_backbone", {}).items()}
    found = comparison_warnings(differences)
    worth = test.get("confidences", {}).get("concentration")
    if worth is not None and not worth["auroc_interval"][0] > 0.5:
        low, high = worth["auroc_interval"]
        found.append(
            f"1/kappa does not foretell errors on these data: its AUROC is {worth['auroc']:.2f} [{low:.2f}, "
            f"{high:.2f}], where 0.5 is chance."
        )
    return found


@torch.no_grad()
def example_texts(model: AsymVLMModel, processor: Any, validation: EmbeddingSplit) -> list[str]:
    """
    Captions of the validation split for the example of a card, as [`choose_texts`] chooses them of those that the
    backbone reads as a whole; none for a head alone, which reads no texts, nor for a deterministic one.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        processor (`ProcessorMixin`, *optional*): that of its backbone.
        validation (`EmbeddingSplit`): captions with their features.
    """
    if processor is None or not model.config.law.has_concentration:
        return []
    captions, features = list(validation.captions), validation.text_features
    concentration = torch.linalg.vector_norm(text_embeds_of(model, features), dim=-1)
    longest = model.config.text_max_length
    lengths = [len(tokens) for tokens in processor.tokenizer(captions, verbose=False)["input_ids"]]
    whole = [row for row, length in enumerate(lengths) if longest is None or length <= longest]
    return choose_texts([captions[row] for row in whole], (1 / concentration)[whole].tolist())


def check_run_files(folder: Path, model: AsymVLMModel) -> None:
    """Raises `ValueError` if the calibration or the figures beside a checkpoint are of another head."""
    saved_calibration(str(folder), model)
    if not are_figures_of(read_results(folder / RESULTS_FILE), model):
        raise ValueError(
            f"{str(folder / RESULTS_FILE)!r} has figures of other weights than those beside it, as when a run was "
            "ended before it had evaluated its head: evaluate the model again, which writes them."
        )


def are_figures_of(results: dict[str, Any], model: AsymVLMModel) -> bool:
    """Whether results are of the head of a model: its fingerprint stands in them."""
    return results.get("head_fingerprint") == head_fingerprint(model)


def remove_figures(folder: Path) -> None:
    """Removes figures, card and calibration of the weights that were in a folder, before it gets others."""
    for name in (RESULTS_FILE, "README.md", CALIBRATION_FILE, TENSORS_FILE, *PLOTS):
        (folder / name).unlink(missing_ok=True)


def save_card(folder: Path, results: dict[str, Any]) -> None:
    """Writes the model card beside the model, whose example is executed, and completes `all_results.json` with it."""
    example = usage_example(results["model"], str(folder), texts=results.get("example_texts", ()), published=False)
    results["example_output"] = run_example(example)
    write_results(folder / RESULTS_FILE, results)
    card = model_card(
        results,
        model_name=folder.resolve().name,
        location=without_folder(str(folder)),
        plots=[name for name in PLOTS if (folder / name).is_file()],
    )
    write_model_card(folder / "README.md", card)


def without_folder(argument: str) -> str:
    """A card is for others: of a path on this machine it gives the last part."""
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}{Path(value).name}" if Path(value).is_absolute() else argument
