"""Trains a probabilistic text head on a frozen vision–language model, evaluates it and saves it.

examples:
    asymvlm train --model_name_or_path openai/clip-vit-base-patch32 \\
        --dataset_name_or_path captions.jsonl --output_dir outputs/mine     # your pairs
    asymvlm train --embeddings features/                                    # cached features
    asymvlm train --do_eval --model_name_or_path outputs/mine \\
        --dataset_name_or_path captions.jsonl                               # figures of a trained model
    asymvlm train arguments.yaml                                            # all arguments in one file
    asymvlm train                                                           # the embedded Scenes example
    accelerate launch -m modeling_asymvlm train                             # on all processes of `accelerate config`

A switch may be followed by true or false.
"""

import argparse
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import AutoProcessor, set_seed

from ..model.checkpoint_fingerprints import check_fingerprint, head_fingerprint
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.modeling_asymvlm import AsymVLMModel
from ..pairs.sources import PairSource
from ..pairs.splits import SPLITS
from ..reporting.evaluate_model import evaluate_split
from ..reporting.model_card import model_facts
from ..reporting.run_files import (
    calibrate,
    example_texts,
    figure_warnings,
    remove_figures,
    save_card,
    save_figures,
    training_record,
)
from ..scenes.generate import generate
from ..scenes.places import BACKBONE
from ..store.builder import cached_features
from ..store.embedding_store import EmbeddingSplit, EmbeddingStore
from ..texts.processor_check import check_processor
from ..training.arguments import AsymVLMTrainingArguments
from ..training.batches import FeaturePairs
from ..training.checks import leak_warnings, pair_warnings
from ..training.recipes import RECIPES, Recipe
from ..training.search import search_regularisation, use_regularisation
from ..training.trainer import AsymVLMTrainer
from ..utils.disk_errors import disk_errors_named
from .checkpoint_evaluation import evaluate_checkpoint, print_results
from .parser import ARGUMENT_FILES, CommandParser, flags_in_file, with_underscores
from .progress import show_one_bar
from .train_arguments import COMMON_TRAINING, FLAGS, DataArguments, ModelArguments, names_of
from .train_checks import alone_in_folder, check_arguments, resumed_checkpoint


ERRORS = (ValueError, OSError, ImportError, subprocess.CalledProcessError)


class Finished(NamedTuple):
    """What a run left in a folder, and whether it was printed as JSON."""

    folder: Path
    results: dict[str, Any]
    json: bool


def training_parser(command: str, text: str) -> CommandParser:
    """A parser of the flags of training, whose help leaves out most of those of transformers' own Trainer."""
    return CommandParser(
        command,
        text,
        [ModelArguments, DataArguments, AsymVLMTrainingArguments],
        flags=FLAGS,
        rare=names_of(AsymVLMTrainingArguments) - COMMON_TRAINING,
        usage=f"asymvlm {command} [ARGUMENTS | FILE.json | FILE.yaml]",
    )


def command_parser() -> CommandParser:
    """The flags of the command."""
    return training_parser("train", __doc__ or "")


def parse_arguments(
    arguments: list[str], parser: CommandParser | None = None
) -> tuple[ModelArguments, DataArguments, AsymVLMTrainingArguments]:
    """Flags, or one JSON or YAML file; leaves with exit code 2 and one sentence if anything is wrong with them."""
    parser = parser or command_parser()
    try:
        if len(arguments) == 1 and Path(arguments[0]).suffix in ARGUMENT_FILES:
            arguments = flags_in_file(Path(arguments[0]))
        recipe = chosen_recipe(arguments)
        parser.set_defaults(**recipe.head, **recipe.training)
        *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if unknown:
            raise ValueError(parser.unknown(unknown[0]))
        model, data, training = parsed
        check_arguments(model, data, training)
        training.resume_from_checkpoint = resumed_checkpoint(model, training)
    except (ValueError, TypeError, OSError, ImportError, yaml.YAMLError) as error:
        parser.error(str(error))
    return model, data, training


def chosen_recipe(arguments: list[str]) -> Recipe:
    """The recipe that the flags name; that of the defaults where they name none, or one that does not exist."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe", nargs="?")
    known, _ = parser.parse_known_args([with_underscores(word) for word in arguments])
    return RECIPES.get(known.recipe, RECIPES["default"])


def prepare_features(
    model_arguments: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments
) -> tuple[AsymVLMModel, Any, dict[str, EmbeddingSplit], list[str]]:
    """The composed model, the backbone's processor if there is one, the features of each split, and broken images."""
    name = model_arguments.model_name_or_path
    if name is None and data.embeddings is None:
        name = str(BACKBONE)
    if name is not None:
        model = AsymVLMModel.from_vlm_pretrained(
            name,
            revision=model_arguments.model_revision,
            trust_remote_code=model_arguments.trust_remote_code,
            dtype=model_arguments.dtype,
            **model_arguments.head_kwargs(),
        )
        processor = AutoProcessor.from_pretrained(
            name,
            revision=model_arguments.model_revision or "main",
            trust_remote_code=model_arguments.trust_remote_code,
        )
        check_processor(model, processor)
    if data.embeddings is not None:
        store = EmbeddingStore(data.embeddings)
        splits = {split: store.split(split) for split in SPLITS}
        if name is None:
            config = AsymVLMConfig(projection_dim=splits["train"].dim, **model_arguments.head_kwargs())
            return AsymVLMModel(config), None, splits, []
        check_features(store, splits["train"].dim, model, name)
        return model, processor, splits, []
    model.to(training.device)  # type: ignore[arg-type]
    with training.main_process_first(desc="reading pairs"):
        sources = read_pairs(data, training.seed)
    store, broken = cached_features(
        Path(str(training.output_dir)) / "embeddings",
        model,
        processor,
        sources,
        **data.embedding_kwargs(),
        process_index=training.process_index,
        num_processes=training.world_size,
    )
    return model, processor, {split: store.split(split) for split in SPLITS}, broken


def check_features(store: EmbeddingStore, dim: int, model: AsymVLMModel, name: str) -> None:
    """Raises `ValueError` if the features of a store are not those of the model's backbone."""
    if dim != model.config.projection_dim:
        raise ValueError(
            f"The features in {str(store.path)!r} are {dim} wide, but the backbone {name!r} gives "
            f"{model.config.projection_dim}: they come from another backbone."
        )
    if store.backbone_fingerprint is None:
        return
    try:
        text_length = model.config.fixed_text_length
        check_fingerprint(store.backbone_fingerprint, model.vlm, name, text_length=text_length)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(
            f"The features in {str(store.path)!r} come from another backbone than {name!r}: name the one that made "
            "them, or make them again."
        ) from error


def read_pairs(data: DataArguments, seed: int) -> dict[str, PairSource]:
    """The pairs of train, validation and test; the embedded example is generated where no data are named."""
    return data.load_pairs(data.dataset_name_or_path or str(generate()), seed)


def train_head(
    model: AsymVLMModel,
    processor: Any,
    splits: dict[str, EmbeddingSplit],
    training: AsymVLMTrainingArguments,
    seconds: dict[str, float],
) -> AsymVLMTrainer:
    """
    Trains the head, after `seconds` for `features` and for what of `training` came before. Raises `KeyboardInterrupt`
    if a signal ended it, after a checkpoint was saved.
    """
    trainer = AsymVLMTrainer(
        model=model,
        args=training,
        train_dataset=FeaturePairs(splits["train"]),
        eval_dataset=FeaturePairs(splits["validation"]),
        data_collator=FeaturePairs.collate,
        processing_class=processor,
    )
    trainer.seconds.update(seconds)
    show_one_bar(trainer)
    for sentence in [*pair_warnings({"test": splits["test"]}), *leak_warnings(splits["train"], splits["test"])]:
        trainer.warn(sentence)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    return trainer


def main(arguments: list[str]) -> int:
    """
    The command; returns 0, and leaves with exit code 2 for arguments, data or a backbone that are wrong, a disk that
    refuses, or another run in the same folder.
    """
    run(arguments, command_parser())
    return 0


def run(arguments: list[str], parser: CommandParser) -> Finished | None:
    """Trains, or evaluates alone, writes and prints; `None` on all processes but the first."""
    model_arguments, data, training = parse_arguments(arguments, parser)
    folder = Path(str(training.output_dir))
    alone = training.process_index == 0
    with parser.failing(OSError), disk_errors_named(folder):
        with alone_in_folder(folder) if alone else nullcontext():
            return _run(parser, model_arguments, data, training, arguments)


def _run(
    parser: CommandParser,
    model_arguments: ModelArguments,
    data: DataArguments,
    training: AsymVLMTrainingArguments,
    arguments: list[str],
) -> Finished | None:
    set_seed(training.seed)
    if training.evaluate_only:
        if training.process_index != 0:
            return None
        with parser.failing(*ERRORS):
            results = evaluate_checkpoint(model_arguments, data, training, arguments)
        return Finished(Path(str(training.output_dir)), results, data.json)
    folder = Path(str(training.output_dir))
    started = time.perf_counter()
    with parser.failing(*ERRORS):
        model, processor, splits, broken = prepare_features(model_arguments, data, training)
    if data.overwrite_output_dir and training.resume_from_checkpoint is None and training.should_save:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    embedded = time.perf_counter()
    with parser.failing(*ERRORS):
        search = None
        if model_arguments.search:
            search = search_regularisation(model, splits["train"], splits["validation"], training)
            use_regularisation(model, training, search["chosen"])
            set_seed(training.seed)
        spent = {"features": embedded - started, "training": time.perf_counter() - embedded}
        trainer = train_head(model, processor, splits, training, spent)
        trainer.count_time()
    if not trainer.is_world_process_zero():
        return None

    model.eval()
    remove_figures(folder)
    model.save_pretrained(folder)  # before anything that may go wrong with the evaluation
    if processor is not None:
        processor.save_pretrained(folder)
    saved = time.perf_counter()
    results = {"validation_loss": trainer.state.best_metric, "broken_images": broken}
    source = data.record(arguments)
    calibration, sentences = calibrate(folder, model, splits["train"], splits["validation"], source)
    calibrated = time.perf_counter()
    results["test"] = evaluate_split(model, splits["test"], calibration=calibration)
    seconds = {**trainer.seconds, "calibration": calibrated - saved}
    results["test"]["time"] = {**seconds, "evaluation": time.perf_counter() - calibrated}
    results["head_fingerprint"] = head_fingerprint(model)
    results["model"] = model_facts(model.config)  # type: ignore[arg-type]
    results["example_texts"] = example_texts(model, processor, splits["validation"])
    steps = trainer.state.global_step
    results["training"] = training_record(source, trainer.args, splits["train"], steps, seconds)
    results["training"]["epochs"] = trainer.state.epoch
    if search is not None:
        results["training"]["search"] = search
    for sentence in [*sentences, *figure_warnings(results["test"])]:
        trainer.warn(sentence)
    results["warnings"] = trainer.warnings
    save_figures(folder, results)
    save_card(folder, results)
    print_results(folder, results, f"Model, figures and card are in {folder}.", as_json=data.json)
    return Finished(folder, results, data.json)
