"""Search: exactness against float64 brute force, and speed beside FAISS and PyTorch on the same simulated texts.

    python -m benchmarks.search [--sizes 10000 100000 1000000] [--queries 64] [--plot outputs/search.png]

Texts are simulated: mean directions about the images that are the queries, and concentrations uniform in a range.
Exactness compares the first ten rows, scores, posteriors and uncertainties for both laws, three ranges and ten seeds;
of candidates of an exhaustive engine, the share of queries that `refine` proves is given.
Speed is the median of interleaved repeats in this one run. "FAISS" is its flat inner product on the natural parameters
alone, without the columns that make it a likelihood, by matrix products as we use it, and besides with FAISS's own
threshold for these; "naive" is kappa ln(1 + mu'z) + G in PyTorch float32, `topk` at
the end, for one image at a time or for all at once. A size takes about 9 kB a text: 9 GB for a million.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from benchmarks.common import machine, print_table
from benchmarks.distributions import medians
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.search.faiss_access import matrix_products
from modeling_asymvlm.search.image_index import ImageIndex
from modeling_asymvlm.search.text_index import TextIndex


LAWS = {"vmf": "von Mises-Fisher", "power_spherical": "Power Spherical"}
RANGES = ((2, 8), (5, 50), (50, 500))
LOGIT_SCALE, K, ROWS_AT_A_TIME = 1.0, 10, 16_384
CANDIDATES = (10, 20, 50, 200)  # of a foreign engine
CHANGED = 1000  # rows that are changed together


def simulate(
    size: int, num_queries: int, dim: int, kappas: tuple[float, float], seed: int
) -> tuple[torch.Tensor, ...]:
    """Mean directions `(size, dim)`, concentrations `(size, 1)` and images `(num_queries, dim)`."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(num_queries, dim, generator=generator), dim=1)
    means = torch.empty(size, dim)
    for start in range(0, size, ROWS_AT_A_TIME):
        rows = means[start : start + ROWS_AT_A_TIME]
        own = torch.randint(num_queries, (len(rows),), generator=generator)
        pull = 0.4 * torch.rand(len(rows), 1, generator=generator)  # cosines up to 0.4, as between CLIP's modalities
        noise = torch.randn(len(rows), dim, generator=generator) / dim**0.5
        rows[:] = F.normalize(noise + pull * images[own], dim=1)
    low, high = kappas
    return means, low + (high - low) * torch.rand(size, 1, generator=generator), images


def build(law: str, means: torch.Tensor, concentration: torch.Tensor) -> TextIndex:
    index = TextIndex(means.shape[1], distribution=law, logit_scale=LOGIT_SCALE)
    for start in range(0, len(means), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        index.add(concentration[rows] * means[rows])
    return index


def check_exactness(size: int, num_queries: int, dim: int, seeds: int) -> bool:
    """Prints the table; returns whether every result was that of brute force."""
    table, all_equal = [], True
    for law, name in LAWS.items():
        for kappas in RANGES:
            queries = differing = 0
            score_error = posterior_error = uncertainty_error = 0.0
            for seed in range(seeds):
                means, concentration, images = simulate(size, num_queries, dim, kappas, seed)
                index = build(law, means, concentration)
                eta = torch.tensor(index.vectors[:, :dim])
                scores = torch.cat(
                    [
                        pair_scores(rows.double(), images.double(), distribution=law).T
                        for rows in eta.split(ROWS_AT_A_TIME)
                    ],
                    dim=1,
                )
                expected = scores.topk(K, dim=1)
                log_posterior = LOGIT_SCALE * expected.values - torch.logsumexp(LOGIT_SCALE * scores, 1, keepdim=True)
                uncertainty = 1 / eta.double().norm(dim=1)[expected.indices]
                for method in ("bound", "scan"):
                    found = index.search(images, K, method=method)
                    queries += len(found)
                    differing += int((found.rows != expected.indices.numpy()).any(axis=1).sum())
                    score_error = max(score_error, np.abs(found.scores - expected.values.numpy()).max())
                    posterior_error = max(posterior_error, np.abs(found.log_posterior - log_posterior.numpy()).max())
                    relative = np.abs(found.uncertainty / uncertainty.numpy() - 1).max()
                    uncertainty_error = max(uncertainty_error, relative)
            all_equal = all_equal and differing == 0
            errors = [f"{error:.0e}" for error in (score_error, posterior_error, uncertainty_error)]
            table.append([name, str(list(kappas)), str(queries), str(differing), *errors])
    print(f"\nFirst {K} of {size} texts, d = {dim}, both methods, {seeds} seeds, against float64 brute force\n")
    header = [
        "distribution",
        "kappa",
        "queries",
        "differing",
        "score error",
        "log-posterior error",
        "uncertainty, relative",
    ]
    print_table(header, table)
    return all_equal


def proven_shares(size: int, num_queries: int, dim: int) -> list[list[str]]:
    """Rows of the table of `refine`: the share of queries proven, and that of them with the results of `search`."""
    table = []
    for law, name in LAWS.items():
        for kappas in RANGES:
            means, concentration, images = simulate(size, num_queries, dim, kappas, seed=0)
            index = build(law, means, concentration)
            vectors, expected = index.query_vectors(images), index.search(images, K, posterior=False)
            ranked = np.argsort(-(vectors @ index.vectors.T), axis=1)
            cells = []
            for count in CANDIDATES:
                found = index.refine(images, ranked[:, :count], K, searched_with=vectors)
                agree = (found.rows == expected.rows).all(axis=1)
                cells.append(f"{found.proven.mean():.2f} ({agree.mean():.2f})")
            table.append([name, str(list(kappas)), *cells])
    return table


def directory_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def measure(size: int, num_queries: int, dim: int, repeats: int) -> tuple[dict[str, float], list[list[str]]]:
    """Median seconds by engine, and the rows of the table of building and loading."""
    means, concentration, images = simulate(size, num_queries, dim, (5, 50), seed=0)
    plain = faiss.IndexFlatIP(dim)
    plain.add((concentration * means).numpy())
    indexes, files = {}, []
    for law, name in LAWS.items():
        started = time.perf_counter()
        indexes[law] = build(law, means, concentration)
        seconds = [time.perf_counter() - started]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            started = time.perf_counter()
            indexes[law].save(path)
            seconds.append(time.perf_counter() - started)
            for memory_map in (False, True):
                started = time.perf_counter()
                loaded = TextIndex.load(path, memory_map=memory_map)
                seconds.append(time.perf_counter() - started)
                del loaded
            in_files = directory_bytes(path) / size
        times = [f"{second:.3f}" for second in seconds]
        files.append([str(size), name, *times, f"{indexes[law].vectors.nbytes / size + 16:.0f}", f"{in_files:.0f}"])
    vectors, kappa = images.numpy(), concentration[:, 0]
    log_normalizers = torch.from_numpy(indexes["power_spherical"].vectors[:, -1].copy())

    def naive(queries: torch.Tensor) -> torch.Tensor:
        return (kappa * torch.log1p(queries @ means.T) + log_normalizers).topk(K, dim=-1).indices

    def searching(law: str, **options: Any):
        return lambda: indexes[law].search(images, K, batch_size=num_queries, **options)

    def search_plain() -> None:
        with matrix_products(num_queries):
            plain.search(vectors, K)

    tasks: dict[str, Any] = {
        "FAISS": search_plain,
        "FAISS, own threshold": lambda: plain.search(vectors, K),
        "vMF, bound": searching("vmf", posterior=False),
        "vMF, scan": searching("vmf", posterior=False, method="scan"),
        "vMF, posterior": searching("vmf"),
        "PS, bound": searching("power_spherical", posterior=False),
        "PS, scan": searching("power_spherical", posterior=False, method="scan"),
        "PS, posterior": searching("power_spherical"),
        "naive PS, all at once": lambda: naive(images),
        "naive PS, one by one": lambda: [naive(image) for image in images],
    }
    return medians(tasks, repeats, torch.device("cpu")), files


def measure_changes(size: int, dim: int) -> list[str]:
    """Median milliseconds of changes of an index of images with one column of metadata, and of the same search."""
    generator = torch.Generator().manual_seed(0)
    index = ImageIndex(dim, distribution="power_spherical")
    for start in range(0, size, ROWS_AT_A_TIME):
        rows = torch.randn(min(ROWS_AT_A_TIME, size - start), dim, generator=generator)
        index.add(rows, metadata={"number": np.arange(start, start + len(rows))})
    rows, rounds = torch.randn(CHANGED, dim, generator=generator), itertools.count()

    def upserting(count: int):
        return lambda: index.upsert(rows[:count], [str(size // 2 + row) for row in range(count)])

    def coming_and_going():
        labels = [f"new {next(rounds)}" for _ in range(CHANGED)]
        index.add(rows, labels)
        index.remove(labels)

    query, condition = rows[:1], pc.field("number") < size // 2
    tasks: dict[str, Any] = {
        "upsert 1": upserting(1),
        f"upsert {CHANGED}": upserting(CHANGED),
        f"add and remove {CHANGED}": coming_and_going,
        "search, k = 10": lambda: index.search(query, K),
        "search, half the rows allowed": lambda: index.search(query, K, where=condition),
    }
    seconds = medians(tasks, 5, torch.device("cpu"))
    return [str(size), *(f"{1000 * seconds[task]:.1f}" for task in tasks)]


def draw_growth(times: dict[int, dict[str, float]], num_queries: int, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from modeling_asymvlm.reporting.plots import write_png

    figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for engine, marker in zip(next(iter(times.values())), "osv^D<>PXh", strict=True):
        milliseconds = [1000 * times[size][engine] / num_queries for size in times]
        axes.loglog(list(times), milliseconds, marker=marker, label=engine)
    axes.set_xlabel("texts")
    axes.set_ylabel(f"milliseconds per image, {num_queries} images together")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    print(f"\nGrowth: {write_png(figure, path)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=64, help="images, searched together")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--exactness_size", type=int, default=100_000)
    parser.add_argument("--exactness_seeds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch and of FAISS")
    parser.add_argument("--plot", type=Path, help="PNG file for the growth of time with size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    print(f"{machine()}, faiss {faiss.__version__}, {arguments.threads} threads")

    kept = True
    if arguments.exactness_seeds:
        kept = check_exactness(arguments.exactness_size, arguments.queries, arguments.dim, arguments.exactness_seeds)
        print(f"\nShare of queries that refine proves (and that has the results of search), first {K}\n")
        shares = proven_shares(arguments.exactness_size, arguments.queries, arguments.dim)
        print_table(["law", "kappa", *(f"{count} candidates" for count in CANDIDATES)], shares)
    times, files = {}, []
    for size in arguments.sizes:
        times[size], rows = measure(size, arguments.queries, arguments.dim, arguments.repeats)
        files += rows
    print(
        f"\n{arguments.queries} images together, d = {arguments.dim}: seconds, and in brackets over those of FAISS\n"
    )
    rows = [
        [engine, *(f"{times[size][engine]:.3f} ({times[size][engine] / times[size]['FAISS']:.2f})" for size in times)]
        for engine in times[arguments.sizes[0]]
    ]
    print_table(["engine", *(f"{size} texts" for size in times)], rows)
    print("\nSeconds and bytes of an index; labels are row numbers\n")
    header = ["texts", "distribution", "build", "save", "load", "map", "bytes a text in memory", "in files"]
    print_table(header, files)
    print("\nMilliseconds of changes and of one query, of an index of images with a column of metadata\n")
    tasks = ["upsert 1", f"upsert {CHANGED}", f"add and remove {CHANGED}", "search", "search, half allowed"]
    print_table(["images", *tasks], [measure_changes(size, arguments.dim) for size in arguments.sizes])
    if arguments.plot:
        draw_growth(times, arguments.queries, arguments.plot)
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
