"""Building and reading a store of features: overhead, kills, memory and growth.

    python -m benchmarks.store build  [--images 2000 --image_size 224 --layers 2 --hidden_size 192 --repeats 5]
    python -m benchmarks.store kills  [--kills 20]
    python -m benchmarks.store read   [--images 118287 --captions 591753 --dim 512 --widths 512 1024 1024 1024 512]
    python -m benchmarks.store growth [--sizes 1000 10000 100000 1000000 --plot growth.png]

`build` sets the time of a build against the forward passes of the same random CLIP on the same batches, which are
ready in memory. `kills` ends a building process at random instants, starts it again, and compares the finished store
with that of an undisturbed build. `read` sets batches read from a store against the reference recipe's way, which
indexes one pair at a time and collates, and against the matrix products of one training step. `growth` measures
writing, opening and one shuffled pass. Things that are compared take turns; all times are medians.
"""

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoProcessor, CLIPConfig, CLIPModel

from benchmarks.common import OneItemAtATime, machine, print_table
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.pairs.sources import CaptionedImage
from modeling_asymvlm.scenes.places import BACKBONE
from modeling_asymvlm.store.builder import cached_features
from modeling_asymvlm.store.embedding import prepared_windows
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.training.batches import FeaturePairs


CAPTIONS_PER_IMAGE = 5
BATCH = 2048


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


class GeneratedSource:
    """JPEG files of coloured noise with captions of the words that the tiny processor knows."""

    def __init__(self, folder: Path, num_images: int, size: int, num_parts: int):
        self.num_parts, self.num_images, self.num_captions = num_parts, num_images, CAPTIONS_PER_IMAGE * num_images
        self.files = [folder / f"{number:06d}.jpg" for number in range(num_images)]
        generator = np.random.default_rng(0)
        for file in self.files:
            if not file.exists():
                coarse = generator.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((size, size)).save(file, quality=90)

    def fingerprint(self, part: int) -> str:
        return f"{part} of {self.num_parts}: {self.num_images}"

    def read(self, part: int) -> Iterator[CaptionedImage]:
        for number in np.array_split(np.arange(self.num_images), self.num_parts)[part].tolist():
            captions = ["a red circle " * (1 + (number + row) % 3) for row in range(CAPTIONS_PER_IMAGE)]
            yield CaptionedImage(str(number), self.files[number], captions)


def tiny_model(arguments: argparse.Namespace) -> tuple[AsymVLMModel, Any]:
    """A random CLIP of the given size, with the words of the Scenes example."""
    torch.manual_seed(0)
    tower = {
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 4 * arguments.hidden_size,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.hidden_size // 32,
    }
    scenes = CLIPConfig.from_pretrained(BACKBONE)
    text = {
        **tower,
        **{
            name: getattr(scenes.text_config, name)
            for name in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id")
        },
    }
    vision = {**tower, "image_size": arguments.image_size, "patch_size": arguments.patch_size}
    config = CLIPConfig(text_config={**text, "max_position_embeddings": 24}, vision_config=vision, projection_dim=64)
    processor = AutoProcessor.from_pretrained(BACKBONE)
    size = {"height": arguments.image_size, "width": arguments.image_size}
    processor.image_processor.size = {"shortest_edge": arguments.image_size}
    processor.image_processor.crop_size = size
    return AsymVLMModel.from_vlm_pretrained(CLIPModel(config)).to(arguments.device), processor


def run_build(arguments: argparse.Namespace) -> None:
    model, processor = tiny_model(arguments)
    times: dict[str, list[float]] = {"forward": [], "build": [], "prepare": []}
    with tempfile.TemporaryDirectory() as folder:
        source = GeneratedSource(Path(folder), arguments.images, arguments.image_size, arguments.parts)
        keywords: dict[str, Any] = {"batch_size": arguments.batch_size}

        def prepare() -> list[Any]:
            return [
                window
                for part in range(source.num_parts)
                for window in prepared_windows(source.read(part), processor, **keywords)
            ]

        windows = prepare()

        @torch.no_grad()
        def forward() -> None:
            for window in windows:
                model.backbone_image_features(**window.image_inputs.to(model.device)).cpu()
                for _, inputs in window.text_batches:
                    model.backbone_text_features(**inputs.to(model.device)).cpu()

        for turn in range(arguments.repeats + 1):
            store = Path(folder, f"store-{turn}")
            figures = {
                "forward": seconds(forward, arguments.device),
                "build": seconds(
                    lambda store=store: cached_features(store, model, processor, {"train": source}, **keywords)
                ),
                "prepare": seconds(prepare),
            }
            if turn:  # the first fills the caches
                for name, value in figures.items():
                    times[name].append(value)
    median = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.divide(times["build"], times["forward"])
    print_table(
        ["part", "seconds", "pairs/s"],
        [[name, f"{value:.3f}", f"{source.num_captions / value:.0f}"] for name, value in median.items()],
    )
    print(f"build / forward: {np.median(ratios):.2f} (from {ratios.min():.2f} to {ratios.max():.2f})")
    ratios = np.divide(times["build"], np.add(times["forward"], times["prepare"]))
    print(f"build / (forward + decoding and tokenising): {np.median(ratios):.2f}")


def run_kills(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "build_once", "--folder", folder]
        for name in ("images", "image_size", "layers", "hidden_size", "patch_size", "parts", "batch_size", "device"):
            command += [f"--{name}", str(getattr(arguments, name))]

        def start(store: str) -> subprocess.Popen:
            process = subprocess.Popen([*command, "--store", store], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert process.stdout is not None and process.stdout.readline().strip() == b"building"
            return process

        process = start("undisturbed")
        undisturbed = seconds(process.communicate)
        generator, killed = random.Random(0), 0
        while killed < arguments.kills:
            process = start("killed")
            time.sleep(generator.uniform(0, undisturbed / 4))
            if process.poll() is not None:  # finished before: begin anew
                Path(folder, "killed").rename(Path(folder, f"finished-{killed}"))
                continue
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
        start("killed").communicate()
        finished = [Path(folder, "killed"), *Path(folder).glob("finished-*")]
        equal = all(content(path) == content(Path(folder, "undisturbed")) for path in finished)
    print(f"{killed} kills within a build of {undisturbed:.1f} s: {len(finished)} finished stores, ", end="")
    print("byte for byte as undisturbed" if equal else "NOT as undisturbed")
    sys.exit(not equal)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store but `.verified.json`, which says when its files were looked at."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".verified.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def run_build_once(arguments: argparse.Namespace) -> None:
    model, processor = tiny_model(arguments)
    folder = Path(arguments.folder)
    source = GeneratedSource(folder, arguments.images, arguments.image_size, arguments.parts)
    print("building", flush=True)
    cached_features(folder / arguments.store, model, processor, {"train": source}, batch_size=arguments.batch_size)


class GeneratedFeatures:
    """Random features that are made as they are written."""

    def __init__(self, num_rows: int, dim: int, dtype: torch.dtype):
        self.shape, self.dtype = (num_rows, dim), dtype

    def split(self, num_rows: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for start, stop in pairwise([*range(0, self.shape[0], num_rows), self.shape[0]]):
            yield torch.randn(stop - start, self.shape[1], generator=generator).to(self.dtype)


def write_generated(path: Path, num_images: int, num_captions: int, dim: int, dtype: torch.dtype) -> EmbeddingStore:
    image_features: Any = GeneratedFeatures(num_images, dim, dtype)
    text_features: Any = GeneratedFeatures(num_captions, dim, dtype)
    split = EmbeddingSplit(
        image_ids=[f"{number:012d}" for number in range(num_images)],
        image_features=image_features,
        captions=[f"the caption with number {number} is as long as others" for number in range(num_captions)],
        text_features=text_features,
        text_image_index=torch.arange(num_captions) * num_images // num_captions,
    )
    return EmbeddingStore.write(path, {"train": split}, {})


def memory() -> dict[str, float]:
    """Resident memory in MB: in all, of its own, of mapped files, and the most there was since the last reset."""
    status = Path("/proc/self/status").read_text()
    names = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "files", "VmHWM": "most"}
    return {label: int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1e3 for name, label in names.items()}


def read_all(pairs: FeaturePairs, batches: list[torch.Tensor]) -> None:
    """One pass, in which no batch outlives the next."""
    for rows in batches:
        pairs.__getitems__(rows)


def run_read(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder, "store")
        # Written by another process, so that this one has only the reader's memory.
        command = [sys.executable, __file__, "write", "--store", str(path)]
        for name in ("images", "captions", "dim", "dtype"):
            command += [f"--{name}", str(getattr(arguments, name))]
        subprocess.run(command, check=True)
        before = memory()
        Path("/proc/self/clear_refs").write_text("5")  # resets the most there was
        opening = [seconds(lambda: EmbeddingStore(path).split("train")) for _ in range(3)]
        pairs = FeaturePairs(EmbeddingStore(path).split("train"))
        generator = torch.Generator().manual_seed(0)
        first_pass = list(torch.randperm(len(pairs), generator=generator).split(BATCH))
        pass_time = seconds(lambda: read_all(pairs, first_pass))
        after = memory()
        print(f"opening: {opening[0]:.2f} s with all checks, {opening[-1]:.2f} s again")
        print(f"a shuffled pass of {len(first_pass)} batches of {BATCH}: {pass_time:.1f} s")
        grown = ", ".join(f"{name} {after[name] - before[name]:.0f}" for name in before)
        print(f"resident memory of the reader beyond imports, in MB: {grown}")

        weights = [torch.randn(shape, device=arguments.device) for shape in pairwise(arguments.widths)]
        features = torch.randn(BATCH, arguments.widths[0], device=arguments.device)
        gallery = torch.randn(BATCH, arguments.widths[-1], device=arguments.device)

        def products() -> None:
            activations = [features]
            for weight in weights:
                activations.append(activations[-1] @ weight)
            gradient = activations[-1] @ gallery.T
            gradient.T @ activations[-1]
            gradient = gradient @ gallery
            for weight, activation in zip(reversed(weights), reversed(activations[:-1]), strict=True):
                activation.T @ gradient
                gradient = gradient @ weight.T

        per_item = iter(DataLoader(OneItemAtATime(pairs.split), batch_size=BATCH, shuffle=True))
        times: dict[str, list[float]] = {"a batch from the store": [], "reference: item by item": [], "products": []}
        for turn in range(arguments.repeats + 1):
            calls = (lambda turn=turn: pairs.__getitems__(first_pass[turn]), lambda: next(per_item), products)
            for name, call in zip(times, calls, strict=True):
                value = seconds(call, arguments.device)
                if turn:
                    times[name].append(value)
    step = np.median(times["products"])
    print_table(
        ["", "ms", "of the products"],
        [[name, f"{1e3 * np.median(t):.1f}", f"{np.median(t) / step:.1%}"] for name, t in times.items()],
    )


def grow_once(path: Path, num_pairs: int, arguments: argparse.Namespace) -> tuple[list[float], float]:
    """Seconds of writing, opening with all checks, opening again and a shuffled pass; and bytes a pair."""
    num_images, dtype = max(2, num_pairs // CAPTIONS_PER_IMAGE), getattr(torch, arguments.dtype)
    times = [seconds(lambda: write_generated(path, num_images, num_pairs, arguments.dim, dtype))]
    time.sleep(0.2)  # files that have only just been written would be checked again
    times += [seconds(lambda: EmbeddingStore(path).split("train")) for _ in range(2)]
    pairs = FeaturePairs(EmbeddingStore(path).split("train"))
    order = list(torch.randperm(num_pairs, generator=torch.Generator().manual_seed(0)).split(BATCH))
    times.append(seconds(lambda: read_all(pairs, order)))
    return times, sum(file.stat().st_size for file in path.rglob("*.parquet")) / num_pairs


def run_growth(arguments: argparse.Namespace) -> None:
    names = ["write", "open, all checked", "open again", "shuffled pass"]
    figures: dict[int, list[float]] = {}
    rows = []
    for num_pairs in arguments.sizes:
        runs = []
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                times, size = grow_once(Path(folder, "store"), num_pairs, arguments)
                runs.append(times)
        figures[num_pairs] = np.median(runs, axis=0).tolist()
        per_pair = [f"{1e6 * value / num_pairs:.2f}" for value in figures[num_pairs]]
        rows.append([f"{num_pairs:.0e}", f"{size:.0f}", *per_pair])
        print(f"done: {num_pairs} pairs", flush=True)
    print_table(["pairs", "bytes a pair", *(f"{name}, µs a pair" for name in names)], rows)
    hours = [value / num_pairs * 1e8 / 3600 for value in figures[num_pairs]]
    print(f"At 1e8 pairs, if the cost of a pair stays: {size * 1e8 / 1e9:.0f} GB; on one process, in hours: ", end="")
    print(", ".join(f"{name} {value:.2f}" for name, value in zip(names, hours, strict=True)))
    print("Of N processes each writes a share of 1 / N, and reads only the rows of its own share of a batch.")
    if arguments.plot:
        import matplotlib.pyplot as plt

        for name, values in zip(names, zip(*figures.values(), strict=True), strict=True):
            plt.loglog(list(figures), values, "o-", label=name)
        plt.xlabel("pairs")
        plt.ylabel("seconds")
        plt.legend()
        plt.savefig(arguments.plot, dpi=150)


def run_write(arguments: argparse.Namespace) -> None:
    dtype = getattr(torch, arguments.dtype)
    write_generated(Path(arguments.store), arguments.images, arguments.captions, arguments.dim, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "kills", "read", "growth", "build_once", "write"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int)
    parser.add_argument("--captions", type=int, default=591_753)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 1024, 1024, 512])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--plot", help="file of the growth plot")
    parser.add_argument("--folder", help="where stores are written; default: the system's temporary folder")
    parser.add_argument("--store", help="name of the store of build_once")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--patch_size", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden_size", type=int, default=192)
    arguments = parser.parse_args()
    if arguments.images is None:
        arguments.images = 118_287 if arguments.what in ("read", "write") else 2000
    if arguments.what not in ("build_once", "write"):
        print(f"{machine()}, {torch.get_num_threads()} threads, {arguments.device}", flush=True)
    globals()[f"run_{arguments.what}"](arguments)


if __name__ == "__main__":
    main()
