"""Size and loading time of a head-only checkpoint on a backbone of the size of CLIP ViT-B/32, random weights.

    python -m benchmarks.loading [--repeats 9]

Loading the backbone alone and loading the checkpoint, which loads the backbone too, take turns.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, CLIPConfig, CLIPModel

from benchmarks.common import machine
from modeling_asymvlm import AsymVLMModel


def seconds(load) -> float:
    started = time.perf_counter()
    load()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        base, head = Path(folder, "base"), Path(folder, "head")
        CLIPModel(CLIPConfig()).save_pretrained(base)
        AsymVLMModel.from_vlm_pretrained(base, num_hidden_layers=3).save_pretrained(head, save_backbone=False)
        size = {path.name: sum(file.stat().st_size for file in path.iterdir()) / 1e6 for path in (base, head)}
        times: dict[str, list[float]] = {"base": [], "head": []}
        for _ in range(arguments.repeats + 1):  # the first round fills the caches
            for path in (base, head):
                times[path.name].append(seconds(lambda path=path: AutoModel.from_pretrained(path)))
    alone, both = (np.median(times[name][1:]) for name in ("base", "head"))
    ratios = np.divide(times["head"][1:], times["base"][1:])
    print(f"{machine()}, {torch.get_num_threads()} threads, median of {arguments.repeats}")
    print(f"backbone alone:            {size['base']:7.1f} MB  {alone:.3f} s")
    print(f"head-only, with backbone:  {size['head']:7.1f} MB  {both:.3f} s")
    print(f"ratio of the medians {both / alone:.3f}; of each pair, median {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
