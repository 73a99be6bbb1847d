"""Figures of a saved model, without training."""

import time
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor

from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.modeling_asymvlm import AsymVLMModel
from ..reporting.evaluate_model import evaluate_split
from ..reporting.model_card import model_facts
from ..reporting.results import RESULTS_FILE, read_results
from ..reporting.run_files import are_figures_of, figure_warnings, save_card, save_figures, saved_calibration
from ..reporting.tables import format_table
from ..scenes.generate import generate
from ..store.builder import cached_features
from ..store.embedding_store import EmbeddingSplit, EmbeddingStore
from ..texts.processor_check import check_processor
from ..training.arguments import AsymVLMTrainingArguments
from .train_arguments import DataArguments, ModelArguments


def evaluate_checkpoint(
    model_arguments: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments, command: list[str]
) -> dict[str, Any]:
    """
    Evaluates a saved model, writes its figures, prints them and returns them.

    Raises:
        ValueError: for a backbone without a head, a head that was trained otherwise than the arguments say, and
            features of another width.
    """
    folder, started = Path(str(training.output_dir)), time.perf_counter()
    checkpoint = str(model_arguments.model_name_or_path)
    loading: dict[str, Any] = {
        "revision": model_arguments.model_revision,
        "trust_remote_code": model_arguments.trust_remote_code,
    }
    loading = {name: value for name, value in loading.items() if value}
    config = AutoConfig.from_pretrained(checkpoint, **loading)
    if not isinstance(config, AsymVLMConfig):
        raise ValueError(f"{checkpoint!r} is a backbone; --do_eval without --do_train needs a trained model.")
    for name, value in model_arguments.head_kwargs().items():
        if value not in (getattr(config, name), getattr(ModelArguments, name)):
            raise ValueError(f"{checkpoint!r} was trained with --{name} {getattr(config, name)}, not {value}.")
    dtype = {} if model_arguments.dtype == "auto" else {"dtype": model_arguments.dtype}
    model = AsymVLMModel.from_pretrained(checkpoint, **loading, **dtype).to(training.device)
    test, broken = test_features(model, checkpoint, loading, data, training)
    embedded = time.perf_counter()
    own_folder = folder.is_dir() and Path(checkpoint).is_dir() and folder.samefile(checkpoint)
    known = own_folder and (folder / RESULTS_FILE).is_file()
    results = read_results(folder / RESULTS_FILE) if known else {}
    if not are_figures_of(results, model):  # a record of how other weights were trained
        results = {}
    results["test"] = evaluate_split(model.eval(), test, calibration=saved_calibration(checkpoint, model))
    results["test"]["time"] = {"features": embedded - started, "evaluation": time.perf_counter() - embedded}
    results |= {"model": model_facts(config), "broken_images": broken, "head_fingerprint": head_fingerprint(model)}
    results["warnings"] = figure_warnings(results["test"])
    results["evaluation"] = data.record(command)
    save_figures(folder, results)
    if own_folder:
        save_card(folder, results)
    written = f"Figures {'and card ' if own_folder else ''}are in {folder}."
    print_results(folder, results, written, as_json=data.json)
    return results


def test_features(
    model: AsymVLMModel,
    checkpoint: str,
    loading: dict[str, Any],
    data: DataArguments,
    training: AsymVLMTrainingArguments,
) -> tuple[EmbeddingSplit, list[str]]:
    """The features of the test split, those given or those of the pairs, and the names of broken images."""
    if data.embeddings is not None:
        test = EmbeddingStore(data.embeddings).split("test")
        if test.dim != model.config.projection_dim:
            raise ValueError(
                f"The features in {data.embeddings!r} are {test.dim} wide, but {checkpoint!r} takes "
                f"{model.config.projection_dim}: they come from another backbone."
            )
        return test, []
    if model.vlm is None:
        raise ValueError(f"{checkpoint!r} is a head without a backbone: pass the features of the data, --embeddings.")
    pairs = data.load_pairs(data.dataset_name_or_path or str(generate()), training.seed)
    processor = AutoProcessor.from_pretrained(checkpoint, **loading)
    check_processor(model, processor)
    store, broken = cached_features(
        Path(str(training.output_dir)) / "test_embeddings",  # beside those of a training, which hold more splits
        model,
        processor,
        {"test": pairs["test"]},
        **data.embedding_kwargs(),
    )
    return store.split("test"), broken


def print_results(folder: Path, results: dict[str, Any], written: str, *, as_json: bool) -> None:
    """The figures of the test split as a table, and where they were written; or the file of them all."""
    if as_json:
        print((folder / "all_results.json").read_text(encoding="utf-8"), end="")
        return
    test, broken = results["test"], results.get("broken_images", [])
    print(f"\nTest split: {test['num_images']} images, {test['num_captions']} captions")
    if broken:
        print(f"Skipped {len(broken)} broken images: {', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}")
    print(f"\n{format_table(test)}\n")
    print(written)
