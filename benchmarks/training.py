"""A training step from a store against the reference recipe's own loop and against its bare matrix products; and
training that is killed again and again.

    python -m benchmarks.training [--batch 2048] [--dim 512] [--device cuda] [--bf16] [--torch_compile]
    python -m benchmarks.training --kills 20

The reference loop, re-implemented: a `DataLoader` that takes the cached features one item at a time and stacks them,
the paper's head, the whole matrix of logits with two cross entropies, SGD. Ours is `AsymVLMTrainer` with its defaults
and the same head, everything between two steps included. The products are those of the head, three for each layer but
the first, which needs two, and of the logits. All take turns, step by step; medians.

With `--kills`, `train_asymvlm.py` is killed (SIGKILL) that often, at random instants and half of the time as it saves,
goes on from its last checkpoint each time, and its weights are compared bit by bit with those of an undisturbed run.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from benchmarks.common import REPOSITORY, OneItemAtATime, finish, machine, print_table
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.recipes import RECIPES
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments


HEAD = {name: value for name, value in RECIPES["paper"].head.items() if name != "normalizer"}


def generated_split(num_images: int, dim: int) -> EmbeddingSplit:
    """Five captions an image, whose features are the image's with noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, dim, generator=generator)
    index = torch.arange(5 * num_images) % num_images
    texts = images[index] + torch.randn(5 * num_images, dim, generator=generator)
    names = [f"image-{row}" for row in range(num_images)]
    return EmbeddingSplit(names, images, [f"caption {row}" for row in range(len(index))], texts, index)


class ReferenceLoop:
    """Steps of the reference recipe; each call is one."""

    def __init__(self, split: EmbeddingSplit, law: str, batch: int, device: str):
        self.model = AsymVLMModel(AsymVLMConfig(projection_dim=split.dim, distribution=law, **HEAD)).to(device)
        self.law, self.device = law, device
        self.loader = DataLoader(OneItemAtATime(split), batch_size=batch, shuffle=True, drop_last=True)
        self.optimizer = torch.optim.SGD(self.model.text_head.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)
        self.batches = iter(self.loader)

    def __call__(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        texts = self.model.text_head(batch["text_features"].to(self.device))
        scores = pair_scores(texts, batch["image_features"].to(self.device), distribution=self.law)
        logits = self.model.logit_scale * scores
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Products:
    """The matrix products of a step and nothing else."""

    def __init__(self, batch: int, dim: int, hidden: int, device: str):
        widths = [dim, hidden, hidden, hidden, dim]
        self.layers = [torch.randn(*pair, device=device) for pair in zip(widths[:-1], widths[1:], strict=True)]
        self.activations = [torch.randn(batch, width, device=device) for width in widths]
        self.logits = torch.empty(batch, batch, device=device)

    def __call__(self) -> None:
        for index, weight in enumerate(self.layers):
            inputs, gradient = self.activations[index], self.activations[index + 1]
            inputs @ weight
            inputs.T @ gradient
            if index:
                gradient @ weight.T
        texts, images = self.activations[-1], self.activations[0]
        torch.mm(texts, images.T, out=self.logits)
        self.logits @ images
        self.logits.T @ texts


class TakeTurns(TrainerCallback):
    """Times the Trainer's steps, data included, and after each one the rivals'."""

    def __init__(self, rivals: dict[str, Any], device: str):
        self.rivals, self.device = rivals, device
        self.seconds: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
        self.started = float("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        finish(self.device)
        self.seconds["ours"].append(time.perf_counter() - self.started)
        for name, rival in self.rivals.items():
            started = time.perf_counter()
            rival()
            finish(self.device)
            self.seconds[name].append(time.perf_counter() - started)
        self.started = time.perf_counter()


def trainer_of(split: EmbeddingSplit, law: str, folder: str, arguments: argparse.Namespace) -> AsymVLMTrainer:
    """The project's Trainer with its defaults, without evaluation and saving."""
    trainer = AsymVLMTrainer(
        model=AsymVLMModel(AsymVLMConfig(projection_dim=split.dim, distribution=law, **HEAD)),
        args=AsymVLMTrainingArguments(
            output_dir=folder,
            max_steps=arguments.steps + 1,
            per_device_train_batch_size=arguments.batch,
            use_cpu=arguments.device == "cpu",
            bf16=arguments.bf16,
            torch_compile=arguments.torch_compile,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=FeaturePairs(split),
        data_collator=FeaturePairs.collate,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def steps_table(arguments: argparse.Namespace) -> None:
    """Prints the times of a step of each loop."""
    device, batch = arguments.device, arguments.batch
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        split = generated_split(arguments.images, arguments.dim)
        EmbeddingStore.write(Path(folder) / "store", {"train": split}, {"backbone": "generated"})
        split = EmbeddingStore(Path(folder) / "store").split("train")
        for law in arguments.distributions:
            trainer = trainer_of(split, law, folder, arguments)
            rivals = {
                "reference loop": ReferenceLoop(split, law, batch, device),
                "bare products": Products(batch, arguments.dim, 1024, device),
            }
            turns = TakeTurns(rivals, device)
            trainer.add_callback(turns)
            trainer.train()
            seconds = {name: statistics.median(values[1:]) for name, values in turns.seconds.items()}
            batches = iter(trainer.get_train_dataloader())
            reads = []
            for _ in range(arguments.steps):
                started = time.perf_counter()
                next(batches)
                reads.append(time.perf_counter() - started)
            share = statistics.median(reads) / seconds["ours"]
            for name, value in seconds.items():
                rows.append(
                    [
                        law,
                        name,
                        f"{1e3 * value:.1f}",
                        f"{batch / value:,.0f}",
                        f"{seconds['reference loop'] / value:.2f}",
                        f"{value / seconds['bare products']:.2f}",
                        f"{100 * share:.1f} %" if name == "ours" else "",
                    ]
                )
    print(f"batch {batch}, d = {arguments.dim}, {arguments.steps} steps of each in turns; {machine(device)}\n")
    header = [
        "distribution",
        "loop",
        "ms a step",
        "pairs/s",
        "speed / reference",
        "time / products",
        "reading a batch",
    ]
    print_table(header, rows)


def run_until_done(command: list[str], output: Path, kills: int, generator: random.Random) -> int:
    """Runs the command, killing it `kills` times, until it ends by itself; returns how often it was killed."""
    killed = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if killed < kills:
            instant = time.monotonic() + generator.uniform(4.0, 12.0)
            while_saving = generator.random() < 0.5
            while process.poll() is None:
                saving = any(output.glob("unfinished-*"))
                if time.monotonic() > instant and (saving or not while_saving):
                    process.kill()
                    killed += 1
                    print(f"killed {killed} times, {'while saving' if saving else 'between savings'}", flush=True)
                    break
        _, errors = process.communicate()
        if process.returncode == 0:
            return killed
        if process.returncode != -9:
            sys.exit(errors)


def kill_and_resume(arguments: argparse.Namespace) -> None:
    """Compares a run that was killed again and again with an undisturbed one."""
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        splits = {
            name: generated_split(images, 64) for name, images in (("train", 600), ("validation", 60), ("test", 60))
        }
        store = EmbeddingStore.write(Path(folder) / "store", splits, {"backbone": "generated"}).path
        weights, killed = {}, 0
        for name, kills in (("undisturbed", 0), ("killed", arguments.kills)):
            output = Path(folder) / name
            command = [sys.executable, str(REPOSITORY / "train_asymvlm.py"), "--embeddings", str(store)]
            command += ["--output_dir", str(output), "--resume_from_checkpoint", "last", "--num_train_epochs", "150"]
            command += ["--per_device_train_batch_size", "100", "--save_strategy", "steps", "--eval_strategy", "steps"]
            command += ["--save_steps", "25", "--eval_steps", "25", "--save_total_limit", "3"]
            killed = run_until_done(command, output, kills, generator)
            weights[name] = load_file(output / "model.safetensors")
    equal = all(torch.equal(tensor, weights["killed"][name]) for name, tensor in weights["undisturbed"].items())
    print(f"killed {killed} times; weights bit-equal to those of an undisturbed run: {equal}")
    if not equal or killed < arguments.kills:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--images", type=int, default=20_000, help="generated, with five captions each")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--distributions", nargs="+", default=["vmf", "power_spherical"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="ours with bfloat16 products in the head")
    parser.add_argument("--torch_compile", action="store_true", help="ours compiled")
    parser.add_argument("--kills", type=int, help="kill training so often instead")
    arguments = parser.parse_args()
    if arguments.kills is None:
        steps_table(arguments)
    else:
        kill_and_resume(arguments)


if __name__ == "__main__":
    main()
