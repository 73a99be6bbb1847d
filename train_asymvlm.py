"""Trains a probabilistic text head on a frozen vision–language model, evaluates it and saves it.

    accelerate launch train_asymvlm.py                                      # the embedded Scenes example, offline
    accelerate launch train_asymvlm.py --model_name_or_path openai/clip-vit-base-patch32 \\
        --dataset_name_or_path captions.jsonl --output_dir outputs/mine     # your pairs
    accelerate launch train_asymvlm.py --embeddings features/               # cached features
    accelerate launch train_asymvlm.py --do_eval --model_name_or_path outputs/mine \\
        --dataset_name_or_path captions.jsonl                               # figures of a trained model
    accelerate launch train_asymvlm.py arguments.yaml                       # all arguments in one file
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import transformers
import yaml
from transformers import AutoConfig, AutoProcessor, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.batches import FeaturePairs
from modeling_asymvlm.building import cached_features
from modeling_asymvlm.command_line import CommandParser, HelpFormatter, flags_in_file
from modeling_asymvlm.data import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.fingerprint import check_fingerprint
from modeling_asymvlm.model_card import model_facts, read_results
from modeling_asymvlm.pairs import DATA_SUFFIXES, SPLITS, load_sources
from modeling_asymvlm.report import evaluate_split, format_table
from modeling_asymvlm.run_arguments import DataArguments, ModelArguments
from modeling_asymvlm.run_report import data_record, save_card, save_figures, save_reference, training_record
from modeling_asymvlm.sources import PairSource
from modeling_asymvlm.trainer import AsymVLMTrainer, AsymVLMTrainingArguments


SCENES = Path(__file__).resolve().parent / "examples" / "scenes"


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, AsymVLMTrainingArguments]:
    """Flags, or one JSON or YAML file; leaves with exit code 2 and one sentence if anything is wrong with them."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandParser(
        [ModelArguments, DataArguments, AsymVLMTrainingArguments],  # type: ignore[list-item]
        usage="accelerate launch train_asymvlm.py [ARGUMENTS | FILE.json | FILE.yaml]",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    try:
        if len(arguments) == 1 and Path(arguments[0]).suffix in (".json", ".yaml", ".yml"):
            arguments = flags_in_file(Path(arguments[0]))
        *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if unknown:
            raise ValueError(f"there is no argument {unknown[0]}")
        model, data, training = parsed
        check_arguments(model, data, training)
    except (ValueError, TypeError, OSError, ImportError, yaml.YAMLError) as error:
        parser.error(" ".join(str(error).split()))
    return model, data, training


def check_arguments(model: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments) -> None:
    """Everything that can be known to be wrong before anything is loaded. Raises `ValueError`."""
    AsymVLMConfig(projection_dim=2, **model.head_kwargs())
    if data.embeddings is not None and data.dataset_name_or_path is not None:
        raise ValueError("--embeddings and --dataset_name_or_path exclude each other: pass cached features or pairs.")
    if data.embeddings is not None:
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
    if training.evaluate_only and model.model_name_or_path is None:
        raise ValueError("--do_eval without --do_train needs a trained model: pass --model_name_or_path.")
    if training.n_gpu > 1:
        raise ValueError(f"one process sees {training.n_gpu} GPUs: start one process a GPU with `accelerate launch`.")
    if data.image_folder is not None and not Path(data.image_folder).is_dir():
        raise ValueError(f"--image_folder: there is no folder {data.image_folder!r}.")
    if data.dataset_name_or_path is None and (data.image_folder is not None or data.streaming):
        raise ValueError("--image_folder and --streaming say how --dataset_name_or_path is read: pass that too.")
    for name, value in (
        ("model_name_or_path", model.model_name_or_path),
        ("dataset_name_or_path", data.dataset_name_or_path),
    ):
        # A name on the Hub is `name` or `organisation/name`: anything else can only be a path.
        is_path = value is not None and (
            value.count("/") > 1 or value[:1] in ("", ".", "/", "~") or Path(value).suffix in DATA_SUFFIXES
        )
        if is_path and not (value and Path(value).exists()):
            raise ValueError(f"--{name}: there is no file or folder {value!r}.")
    if data.dataset_name_or_path is None and data.embeddings is None and not (SCENES / "generate.py").is_file():
        raise ValueError("The embedded example is not here: run in a checkout of the repository, or pass your data.")
    if data.dataset_name_or_path is not None and model.model_name_or_path is None:
        raise ValueError("--dataset_name_or_path needs a backbone: pass --model_name_or_path.")
    if not 0 < data.held_out_fraction < 0.5:
        raise ValueError(f"--held_out_fraction must lie between 0 and 0.5, got {data.held_out_fraction}.")
    if data.embedding_batch_size < 1:
        raise ValueError(f"--embedding_batch_size must be at least 1, got {data.embedding_batch_size}.")
    folder = Path(str(training.output_dir))
    if folder.is_file():
        raise ValueError(f"--output_dir {str(folder)!r} is a file.")
    goes_on = training.resume_from_checkpoint is not None
    if training.resume_from_checkpoint == "last":
        training.resume_from_checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    if training.resume_from_checkpoint is not None:
        check_resumption(model, Path(training.resume_from_checkpoint), folder)
    elif (
        training.evaluate_only
        and folder.is_dir()
        and folder.resolve() == Path(str(model.model_name_or_path)).resolve()
    ):
        return  # the figures beside the model are replaced
    elif not goes_on and folder.is_dir() and any(folder.iterdir()) and not data.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {str(folder)!r} is not empty: choose another, or pass --overwrite_output_dir, or "
            "--resume_from_checkpoint last to go on."
        )


def check_resumption(model: ModelArguments, checkpoint: Path, folder: Path) -> None:
    """A run goes on only in its own folder and with the head that it began with. Raises `ValueError`."""
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"--resume_from_checkpoint: {str(checkpoint)!r} is not the folder of a checkpoint.")
    if checkpoint.resolve().parent != folder.resolve():
        raise ValueError(f"--resume_from_checkpoint {str(checkpoint)!r} is not in --output_dir {str(folder)!r}.")
    saved = AsymVLMConfig(projection_dim=2).to_dict() | json.loads((checkpoint / "config.json").read_text())
    for name, value in model.head_kwargs().items():
        if saved[name] != value:
            raise ValueError(f"the checkpoint was trained with --{name} {saved[name]}, not {value}.")


def prepare_features(
    model_arguments: ModelArguments, data: DataArguments, training: AsymVLMTrainingArguments
) -> tuple[AsymVLMModel, Any, dict[str, EmbeddingSplit], list[str]]:
    """The composed model, the backbone's processor if there is one, the features of each split, and broken images."""
    name = model_arguments.model_name_or_path
    if name is None and data.embeddings is None:
        name = str(SCENES / "tiny_clip")
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
    if data.embeddings is not None:
        store = EmbeddingStore(data.embeddings)
        splits = {split: store.split(split) for split in SPLITS}
        if name is None:
            config = AsymVLMConfig(projection_dim=splits["train"].dim, **model_arguments.head_kwargs())
            return AsymVLMModel(config), None, splits, []
        if splits["train"].dim != model.config.projection_dim:
            raise ValueError(
                f"The features in {data.embeddings!r} are {splits['train'].dim} wide, but the backbone {name!r} gives "
                f"{model.config.projection_dim}: they come from another backbone."
            )
        if store.backbone_fingerprint is not None:
            try:
                recorded, text_length = store.backbone_fingerprint, model.config.fixed_text_length
                check_fingerprint(recorded, model.vlm, name, text_length=text_length)  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(
                    f"The features in {data.embeddings!r} come from another backbone than {name!r}: name the one that "
                    "made them, or make them again."
                ) from error
        return model, processor, splits, []
    model.to(training.device)  # type: ignore[arg-type]
    with training.main_process_first(desc="reading pairs"):
        sources = load_pairs(data, training.seed)
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


def load_pairs(data: DataArguments, seed: int) -> dict[str, PairSource]:
    """The pairs of train, validation and test; the embedded example is generated where no data are named."""
    source = data.dataset_name_or_path
    if source is None:
        source = str(SCENES / "data")
        command = [sys.executable, str(SCENES / "generate.py"), "--output_dir", source]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_sources(
        source,
        config_name=data.dataset_config_name,
        image_column=data.image_column,
        caption_column=data.caption_column,
        image_id_column=data.image_id_column,
        image_folder=data.image_folder,
        streaming=data.streaming,
        held_out_fraction=data.held_out_fraction,
        seed=seed,
    )


def evaluate_checkpoint(model_arguments: ModelArguments, data: DataArguments, training: Any, command: Any) -> None:
    """Figures of a saved model on the test split, without training: what `--do_eval` alone does."""
    folder, started = Path(str(training.output_dir)), time.perf_counter()
    checkpoint = str(model_arguments.model_name_or_path)
    loading = {"revision": model_arguments.model_revision, "trust_remote_code": model_arguments.trust_remote_code}
    loading = {name: value for name, value in loading.items() if value}
    config = AutoConfig.from_pretrained(checkpoint, **loading)
    if not isinstance(config, AsymVLMConfig):
        raise ValueError(f"{checkpoint!r} is a backbone; --do_eval without --do_train needs a trained model.")
    for name, value in model_arguments.head_kwargs().items():
        if value not in (getattr(config, name), getattr(ModelArguments, name)):
            raise ValueError(f"{checkpoint!r} was trained with --{name} {getattr(config, name)}, not {value}.")
    dtype = {} if model_arguments.dtype == "auto" else {"dtype": model_arguments.dtype}
    model = AsymVLMModel.from_pretrained(checkpoint, **loading, **dtype).to(training.device)
    broken: list[str] = []
    if data.embeddings is not None:
        test = EmbeddingStore(data.embeddings).split("test")
        if test.dim != config.projection_dim:
            raise ValueError(
                f"The features in {data.embeddings!r} are {test.dim} wide, but {checkpoint!r} takes "
                f"{config.projection_dim}: they come from another backbone."
            )
    elif model.vlm is None:
        raise ValueError(f"{checkpoint!r} is a head without a backbone: pass the features of the data, --embeddings.")
    else:
        store, broken = cached_features(
            folder / "test_embeddings",  # beside those of a training, which hold more splits
            model,
            AutoProcessor.from_pretrained(checkpoint, **loading),
            {"test": load_pairs(data, training.seed)["test"]},
            **data.embedding_kwargs(),
        )
        test = store.split("test")
    embedded = time.perf_counter()
    own_folder = folder.is_dir() and Path(checkpoint).is_dir() and folder.samefile(checkpoint)
    known = own_folder and (folder / "all_results.json").is_file()
    results = read_results(folder / "all_results.json") if known else {}
    results["test"] = evaluate_split(model.eval(), test)
    results["test"]["time"] = {"features": embedded - started, "evaluation": time.perf_counter() - embedded}
    results |= {"model": model_facts(config), "broken_images": broken}
    results["evaluation"] = data_record(data.dataset_name_or_path, data.embeddings, command)
    save_figures(folder, results)
    if own_folder:
        save_card(folder, results)
    print_results(results)
    print(f"Figures {'and card ' if own_folder else ''}are in {folder}.")


def print_results(results: dict[str, Any]) -> None:
    test, broken = results["test"], results.get("broken_images", [])
    print(f"\nTest split: {test['num_images']} images, {test['num_captions']} captions")
    if broken:
        print(f"Skipped {len(broken)} broken images: {', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}")
    print(f"\n{format_table(test)}\n")


def main(arguments: list[str]) -> None:
    model_arguments, data, training = parse_arguments(arguments)
    transformers.utils.logging.disable_progress_bar()
    set_seed(training.seed)
    if training.evaluate_only:
        if training.process_index > 0:
            return
        try:
            return evaluate_checkpoint(model_arguments, data, training, arguments)
        except (ValueError, OSError, ImportError, subprocess.CalledProcessError) as error:
            sys.exit(f"train_asymvlm.py: error: {error}")
    folder = Path(str(training.output_dir))
    started = time.perf_counter()
    try:
        model, processor, splits, broken = prepare_features(model_arguments, data, training)
    except (ValueError, OSError, ImportError, subprocess.CalledProcessError) as error:
        sys.exit(f"train_asymvlm.py: error: {error}")
    if data.overwrite_output_dir and training.resume_from_checkpoint is None and training.should_save:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    embedded = time.perf_counter()

    pairs_per_process = len(splits["train"].captions) // training.world_size
    training.per_device_train_batch_size = min(training.per_device_train_batch_size, max(1, pairs_per_process))
    trainer = AsymVLMTrainer(
        model=model,
        args=training,
        train_dataset=FeaturePairs(splits["train"]),
        eval_dataset=FeaturePairs(splits["validation"]),
        data_collator=FeaturePairs.collate,
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if trainer.interruption.interrupted:
        raise KeyboardInterrupt
    trained = time.perf_counter()
    if not trainer.is_world_process_zero():
        return

    model.eval()
    model.save_pretrained(folder)  # before anything that may go wrong with the evaluation
    if processor is not None:
        processor.save_pretrained(folder)
    saved = time.perf_counter()
    results: dict[str, Any] = {"validation_loss": trainer.state.best_metric, "broken_images": broken}
    results["test"] = evaluate_split(model, splits["test"])
    seconds = {"features": embedded - started, "training": trained - embedded}
    results["test"]["time"] = {**seconds, "evaluation": time.perf_counter() - saved}
    results["model"] = model_facts(model.config)  # type: ignore[arg-type]
    source = data_record(data.dataset_name_or_path, data.embeddings, arguments)
    save_reference(folder, model, splits["validation"], source)
    results["training"] = training_record(source, training, splits["train"], trainer.state.global_step, seconds)
    save_figures(folder, results)
    save_card(folder, results)
    print_results(results)
    print(f"Model, figures and card are in {folder}.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\ntrain_asymvlm.py: interrupted; --resume_from_checkpoint last goes on.", file=sys.stderr)
        sys.exit(130)
