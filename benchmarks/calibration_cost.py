"""What the evidence of a gallery and a calibration cost: time against the bare product, time and memory of each part.

    python -m benchmarks.calibration_cost [--gallery 100000] [--references 8192] [--repeats 5]
                                          [--captions 100000] [--validation 25000] [--dim 512]

Features are generated: images are random directions, five captions an image are noisy copies of it. The evidence of a
gallery under reference captions is a matrix product and a log-sum of its tiles; the bare product multiplies the same
tiles and keeps none. The calibration of a von Mises-Fisher head runs in a process of its own, whose memory is the most
that it holds beyond the features; its parts are the functions of the package in which it spends most of its time,
with what they call.
"""

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import interleaved_medians, machine, peak_memory, print_table
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.calibration.calibration import Calibration
from modeling_asymvlm.calibration.evidence import TILE_IMAGES, TILE_TEXTS, log_evidence
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


CAPTIONS_OF_AN_IMAGE = 5
SHOWN_PARTS = 12


def bare_product(texts: torch.Tensor, images: torch.Tensor) -> None:
    """The tiles of [`log_evidence`], none of which is kept."""
    for some in images.split(TILE_IMAGES):
        for rows in texts.split(TILE_TEXTS):
            rows @ some.T


def generated(captions: int, dim: int, seed: int) -> EmbeddingSplit:
    """Pairs of random images and their noisy copies, so that about half of the captions find their own."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(captions // CAPTIONS_OF_AN_IMAGE, dim, generator=generator), dim=-1)
    index = torch.arange(captions) // CAPTIONS_OF_AN_IMAGE
    texts = images[index] + 0.25 * torch.randn(captions, dim, generator=generator)
    return EmbeddingSplit(
        image_ids=[str(row) for row in range(len(images))],
        image_features=images,
        captions=[""] * captions,
        text_features=texts,
        text_image_index=index,
    )


def measure_calibration(captions: int, validation: int, dim: int) -> None:
    """Prints the seconds, the bytes and the slowest parts of a calibration as JSON."""
    model = AsymVLMModel(AsymVLMConfig(distribution="vmf", projection_dim=dim)).eval()
    splits = generated(captions, dim, 0), generated(validation, dim, 1)
    profile = cProfile.Profile()
    figures: dict[str, Any] = {}

    def fit() -> None:
        started, worked = time.perf_counter(), time.process_time()
        profile.runcall(Calibration.fit, model, *splits)
        figures.update(seconds=time.perf_counter() - started, processor_seconds=time.process_time() - worked)

    memory = peak_memory(fit)
    parts = {
        f"{Path(file).stem}.{name}": cumulative
        for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        if "modeling_asymvlm" in file
    }
    print(json.dumps({**figures, "memory": memory, "parts": parts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=100_000, help="images whose evidence is taken")
    parser.add_argument("--references", type=int, default=8192, help="captions under which it is taken")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--captions", type=int, default=100_000, help="training captions of the calibration")
    parser.add_argument("--validation", type=int, default=25_000, help="validation captions of the calibration")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--calibration_alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.calibration_alone:
        measure_calibration(arguments.captions, arguments.validation, arguments.dim)
        return

    print(f"d = {arguments.dim}; {machine()}\n", flush=True)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(arguments.references, arguments.dim, generator=generator)
    images = F.normalize(torch.randn(arguments.gallery, arguments.dim, generator=generator), dim=-1)
    laws = {name: AsymVLMConfig(distribution=name).law for name in ("vmf", "power_spherical", "deterministic")}
    runs = {"bare product": lambda: bare_product(texts, images)}
    for name, law in laws.items():
        runs[f"evidence, {name}"] = lambda law=law: log_evidence(law.scores, 1.0, texts, images)
    medians = interleaved_medians(runs, arguments.repeats)
    rows = [[name, f"{value:.2f}", f"{value / medians['bare product']:.2f}"] for name, value in medians.items()]
    print(f"{arguments.gallery} images, {arguments.references} reference captions:\n")
    print_table(["computation", "seconds", "times the bare product"], rows)

    command = [sys.executable, "-m", "benchmarks.calibration_cost", "--calibration_alone", "--dim", str(arguments.dim)]
    command += ["--captions", str(arguments.captions), "--validation", str(arguments.validation)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"\nCalibration of {arguments.captions} training and {arguments.validation} validation captions: ", end="")
    print(f"{found['seconds']:.1f} s, {found['processor_seconds']:.1f} s of all cores, ", end="")
    print(f"{found['memory'] / 2**30:.2f} GB\n")
    slowest = sorted(found["parts"].items(), key=lambda part: -part[1])[:SHOWN_PARTS]
    print_table(["part, with what it calls", "seconds"], [[name, f"{value:.1f}"] for name, value in slowest])


if __name__ == "__main__":
    main()
