"""What the benchmarks share: training a head on cached features, and tables of means over seeds."""

import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import torch
import transformers
from torch.utils.data import Dataset
from transformers import AutoProcessor, set_seed

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.pairs.layouts import SPLITS, load_pairs
from modeling_asymvlm.reporting.tables import markdown_table
from modeling_asymvlm.scenes.generate import generate
from modeling_asymvlm.scenes.places import BACKBONE
from modeling_asymvlm.store.builder import cached_features
from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments


REPOSITORY = Path(__file__).resolve().parents[1]

transformers.utils.logging.disable_progress_bar()
logging.getLogger("datasets").setLevel(logging.ERROR)


def machine(device: str = "cpu") -> str:
    """Processor, cores and versions: what a figure of time depends on."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}"
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, transformers {transformers.__version__}"


class OneItemAtATime(Dataset):
    """The reference's way to read cached features."""

    def __init__(self, split: EmbeddingSplit):
        self.texts, self.images, self.index = split.text_features[:], split.image_features[:], split.text_image_index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"text_features": self.texts[row], "image_features": self.images[self.index[row]]}


def finish(device: str) -> None:
    """Waits until an accelerator has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def interleaved_medians(runs: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each run, all taken in turns after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            finish(device)
            started = time.perf_counter()
            run()
            finish(device)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that a run needs at its peak beyond what there was: of the accelerator, or of this process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux then counts the peak from here
    before = psutil.Process().memory_info().rss
    run()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0]) - before


def scenes_features(cache: Path) -> tuple[dict[str, EmbeddingSplit], Any]:
    """The features of the tiny CLIP for every split, and the test split as a data set."""
    data = generate()
    model = AsymVLMModel.from_vlm_pretrained(BACKBONE)
    processor = AutoProcessor.from_pretrained(BACKBONE)
    store, _ = cached_features(cache, model, processor, load_pairs(str(data)), batch_size=256)
    test = datasets.Dataset.from_parquet(str(data / "test.parquet"))
    return {name: store.split(name) for name in SPLITS}, test


def train_head(
    splits: dict[str, EmbeddingSplit], *, seed: int, config: dict[str, Any], training: dict[str, Any] | None = None
) -> tuple[AsymVLMModel, dict[str, Any]]:
    """
    Trains a head with the project's own Trainer and keeps the best by validation loss.

    Args:
        splits (`dict[str, EmbeddingSplit]`): with `train` and `validation`.
        seed (`int`): of the initialisation, the order of the batches and the dropout.
        config (`dict`): arguments of `AsymVLMConfig` that differ from its defaults.
        training (`dict`, *optional*): arguments of `AsymVLMTrainingArguments` that differ from its defaults.

    Returns:
        The model in evaluation mode; `seconds`, `steps` and `validation_loss`.
    """
    set_seed(seed)
    model = AsymVLMModel(AsymVLMConfig(projection_dim=splits["train"].dim, **config))
    with tempfile.TemporaryDirectory() as folder:
        arguments = AsymVLMTrainingArguments(
            output_dir=folder,
            seed=seed,
            disable_tqdm=True,
            logging_strategy="no",
            report_to="none",
            **(training or {}),
        )
        trainer = AsymVLMTrainer(
            model=model,
            args=arguments,
            train_dataset=FeaturePairs(splits["train"]),
            eval_dataset=FeaturePairs(splits["validation"]),
            data_collator=FeaturePairs.collate,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    figures = {
        "seconds": seconds,
        "steps": trainer.state.global_step,
        "validation_loss": trainer.state.best_metric,
    }
    return model.eval(), figures


def mean_and_deviation(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± standard deviation`, or the value alone where there is one."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table at once, however the output is buffered."""
    print(markdown_table([header, *rows]), flush=True)
