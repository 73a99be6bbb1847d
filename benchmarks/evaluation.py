"""Time of `retrieval_metrics` against the bare matrix product and top-k, and of `fit_logit_scale` against both.

    python -m benchmarks.evaluation [--images 5000] [--captions 25000] [--dim 512] [--repeats 5] [--device cpu]

The bare computation multiplies the same blocks and takes the first ten of every row and of every column's block, which
is less than R@1, R@5, R@10 and the median rank of both directions need. Runs are interleaved; medians are printed, and
the most memory that the process has held.
"""

import argparse
import resource
import statistics
import time

import torch

from benchmarks.common import machine, print_table
from modeling_asymvlm.evaluation import EmbeddingScores, fit_logit_scale, retrieval_metrics, retrieval_posterior
from modeling_asymvlm.model.objective import pair_scores


TILE_SIZE = 1024


def product(texts: torch.Tensor, images: torch.Tensor) -> None:
    """The matrix product in blocks, none of which is kept."""
    for block in texts.split(TILE_SIZE):
        block @ images.T


def product_and_top_k(texts: torch.Tensor, images: torch.Tensor) -> None:
    """The matrix product in blocks, and the first ten images of each text and texts of each image in a block."""
    for block in texts.split(TILE_SIZE):
        scores = block @ images.T
        scores.topk(10, dim=1)
        scores.T.contiguous().topk(10, dim=1)


def seconds(function, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(arguments.images, arguments.dim, generator=generator), dim=-1)
    index = torch.arange(arguments.captions) % arguments.images
    noise = torch.randn(arguments.captions, arguments.dim, generator=generator)
    texts = torch.nn.functional.normalize(images[index] + noise / 3, dim=-1)
    images, texts = images.to(arguments.device), texts.to(arguments.device)
    cosines = EmbeddingScores(texts, images)
    likelihoods = EmbeddingScores(texts * 20, images, lambda t, i: pair_scores(t, i, distribution="power_spherical"))

    tasks = {
        "bare product": lambda: product(texts, images),
        "bare product and top-k": lambda: product_and_top_k(texts, images),
        "retrieval_metrics, inner products": lambda: retrieval_metrics(cosines, index),
        "retrieval_metrics, Power Spherical": lambda: retrieval_metrics(likelihoods, index),
        "retrieval_posterior, inner products": lambda: retrieval_posterior(cosines, index, logit_scale=20.0),
        "fit_logit_scale, text -> image": lambda: fit_logit_scale(cosines, index),
        "fit_logit_scale, image -> text": lambda: fit_logit_scale(cosines, index, direction="image_to_text"),
    }
    print(f"{arguments.images} images, {arguments.captions} captions, {arguments.dim} dimensions; {machine()}\n")
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(arguments.repeats):
        for name, task in tasks.items():
            times[name].append(seconds(task, arguments.device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    bare, one_pass = medians["bare product and top-k"], medians["retrieval_metrics, inner products"]
    print_table(
        ["computation", "seconds", "times the bare one", "times one retrieval pass"],
        [[name, f"{value:.3f}", f"{value / bare:.2f}", f"{value / one_pass:.2f}"] for name, value in medians.items()],
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{retrieval_metrics(cosines, index)}\nMost memory held by the process: {memory:.2f} GB")


if __name__ == "__main__":
    main()
