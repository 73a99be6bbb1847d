"""Retrieval with a guarantee, over random splits by image: coverage and size of the sets, errors of the answers.

    python -m benchmarks.conformal [--embeddings DIR] [--splits 200]

Without DIR on Scenes, with the default head; with DIR, a folder of cached features, with the head that is recommended
for small data. The test split is the gallery; half of its images, drawn at random, calibrate with all their captions,
and the other half is judged. Sets are made from the posterior of the head and, beside it, from the cosine of the
backbone. Coverage is per image, averaged over the splits, and lies "within" if it is in the 99 % interval of
a binomial of 1 - alpha over the images of one half.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.common import REPOSITORY, machine, print_table, scenes_features, train_head
from benchmarks.small_data import recipe
from modeling_asymvlm.calibration.conformal import ConformalSets, SelectiveAnswers
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.pairs.layouts import SPLITS
from modeling_asymvlm.search.image_index import ImageIndex
from modeling_asymvlm.search.text_index import TextIndex
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


ALPHAS = (0.05, 0.1, 0.2)
TARGET_ERROR, ERROR_PROBABILITY, FIRST = 0.3, 0.1, 10


class Queries:
    """Conformities of all results of every query, best first, and of its best right answer."""

    def __init__(self, conformity: np.ndarray, right: np.ndarray, images: np.ndarray, uncertainty: np.ndarray):
        self.best = np.where(right, conformity, -np.inf).max(axis=1)
        self.conformity = -np.sort(-conformity, axis=1)
        self.found = self.best >= self.conformity[:, FIRST - 1]
        self.images, self.uncertainty = images, uncertainty


def conformities(index: TextIndex | ImageIndex, queries: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log-posterior `(queries, rows)` by row, and the uncertainty of the first result."""
    found = index.search(queries, len(index))
    by_row = np.empty_like(found.scores)
    np.put_along_axis(by_row, found.rows, found.log_posterior, axis=1)
    return by_row, found.uncertainty[:, 0]


@torch.no_grad()
def make_queries(model, split: EmbeddingSplit) -> dict[str, dict[str, Queries]]:
    """By direction and by what conforms."""
    output = model(text_features=split.text_features[:], image_features=split.image_features[:], return_logits=False)
    owner = split.text_image_index.numpy()
    right = owner[:, None] == np.arange(len(split.image_ids))  # (captions, images)
    cosine = pair_scores(split.text_features[:], split.image_features[:], distribution="deterministic").numpy()
    with_captions = np.unique(owner)
    queries: dict[str, dict[str, Queries]] = {}
    posterior, uncertainty = conformities(ImageIndex.from_split(model, split), output.text_embeds)
    for name, values in (("posterior", posterior), ("cosine", cosine)):
        queries.setdefault("text -> image", {})[name] = Queries(values, right, owner, uncertainty)
    posterior, uncertainty = conformities(TextIndex.from_split(model, split), output.image_embeds)
    for name, values in (("posterior", posterior), ("cosine", cosine.T)):
        of_images = (values[with_captions], right.T[with_captions], with_captions, uncertainty[with_captions])
        queries.setdefault("image -> text", {})[name] = Queries(*of_images)
    return queries


def mean_by_image(values: np.ndarray, images: np.ndarray) -> float:
    """Mean over the images of the mean over the queries of each."""
    rows = np.unique(images, return_inverse=True)[1]
    return float((np.bincount(rows, values) / np.bincount(rows)).mean())


def calibrate(queries: Queries, first: np.ndarray, alpha: float, edges: Sequence[float] = ()) -> ConformalSets:
    options = {"groups": queries.images[first], "uncertainty": queries.uncertainty[first], "edges": edges}
    return ConformalSets.calibrate(queries.best[first], alpha, **options)


def judge_sets(queries: Queries, halves: list[np.ndarray], alpha: float) -> list[float]:
    """Means over the splits of coverage, mean and median size, and share of empty sets."""
    figures = []
    for calibrates in halves:
        first = calibrates[queries.images]
        sets = calibrate(queries, first, alpha)
        covered = queries.best[~first] >= sets.thresholds[0]
        sizes, _ = sets.sizes(queries.conformity[~first], gallery_size=queries.conformity.shape[1])
        coverage = mean_by_image(covered, queries.images[~first])
        figures.append([coverage, sizes.mean(), np.median(sizes), (sizes == 0).mean()])
    return np.mean(figures, axis=0).tolist()


def judge_strata(
    queries: Queries, halves: list[np.ndarray], alpha: float, edges: Sequence[float], *, by_stratum: bool
) -> list[float]:
    """Mean coverage over the splits in each stratum, with one threshold or one for each."""
    strata = np.digitize(queries.uncertainty, edges)
    figures = []
    for calibrates in halves:
        first = calibrates[queries.images]
        sets = calibrate(queries, first, alpha, edges if by_stratum else ())
        covered = queries.best >= sets.thresholds[strata if by_stratum else 0]
        judged = [~first & (strata == stratum) for stratum in range(len(edges) + 1)]
        figures.append([mean_by_image(covered[some], queries.images[some]) for some in judged])
    return np.mean(figures, axis=0).tolist()


def judge_answers(queries: Queries, halves: list[np.ndarray]) -> list[list[float]]:
    """Per split: share of answered queries and of wrong ones among them (NaN if there are none)."""
    figures = []
    for seed, calibrates in enumerate(halves):
        first = calibrates[queries.images]
        confidence = queries.conformity[:, 0]
        chosen = SelectiveAnswers.calibrate(
            confidence[first],
            queries.found[first],
            target_error=TARGET_ERROR,
            error_probability=ERROR_PROBABILITY,
            groups=queries.images[first],
            seed=seed,
        )
        answered = chosen.answers(confidence[~first])
        wrong = 1 - queries.found[~first][answered].mean() if answered.any() else np.nan
        figures.append([answered.mean(), wrong])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="folder of cached features")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--distribution", default="power_spherical")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "outputs" / "scenes-embeddings")
    arguments = parser.parse_args()

    if arguments.embeddings is None:
        arguments.cache.parent.mkdir(parents=True, exist_ok=True)
        splits, (config, training) = scenes_features(arguments.cache)[0], recipe("learned")
    else:
        store = EmbeddingStore(arguments.embeddings)
        splits = {name: store.split(name) for name in SPLITS}
        config, training = recipe("default")
    config = {"distribution": arguments.distribution, **config}
    model, _ = train_head(splits, seed=0, config=config, training=training)
    queries = make_queries(model, splits["test"])
    num_images = len(splits["test"].image_ids)
    halves = []
    for seed in range(arguments.splits):
        calibrates = np.zeros(num_images, bool)
        calibrates[np.random.default_rng(seed).permutation(num_images)[: num_images // 2]] = True
        halves.append(calibrates)

    print(f"{len(splits['test'].captions)} captions of {num_images} images, {len(halves)} splits; {machine()}\n")
    rows = []
    for direction, by_conformity in queries.items():
        for alpha in ALPHAS:
            half = num_images - num_images // 2
            low, high = (bound / half for bound in stats.binom(half, 1 - alpha).interval(0.99))
            for name, some in by_conformity.items():
                coverage, mean, median, empty = judge_sets(some, halves, alpha)
                within = "yes" if low <= coverage <= high else "no"
                interval = f"{low:.3f} to {high:.3f}"
                cells = [f"{coverage:.4f}", interval, within, f"{mean:.1f}", f"{median:.0f}", f"{empty:.3f}"]
                rows.append([direction, name, f"{1 - alpha:g}", *cells])
    print_table(
        ["direction", "conformity", "promised", "coverage", "interval", "within", "mean size", "median", "empty"], rows
    )

    with torch.no_grad():
        validation = model(text_features=splits["validation"].text_features[:]).concentration
    edges = np.quantile(1 / validation.numpy(), [1 / 3, 2 / 3]).tolist()
    rows = []
    for name, by_stratum in (("one threshold", False), ("by stratum", True)):
        some = queries["text -> image"]["posterior"]
        coverages = judge_strata(some, halves, 0.1, edges, by_stratum=by_stratum)
        rows.append([name, *(f"{coverage:.4f}" for coverage in coverages)])
    print("\nText -> image, promised 0.9: coverage by tertile of uncertainty, as the validation captions set them\n")
    print_table(["sets", "most specific", "middle", "most vague"], rows)

    print(
        f"\nAnswers with a right one among the first {FIRST}: at most {TARGET_ERROR:.0%} wrong, but in one calibration"
    )
    print(f"of {1 / ERROR_PROBABILITY:.0f}; errors are those of the other half, with its own luck\n")
    rows = []
    for direction, by_conformity in queries.items():
        for name, some in by_conformity.items():
            answered, wrong = np.array(judge_answers(some, halves)).T
            share_wrong = "" if np.isnan(wrong).all() else f"{np.nanmean(wrong):.3f}"
            above = np.mean(np.nan_to_num(wrong) > TARGET_ERROR)
            rows.append([direction, name, f"{answered.mean():.3f}", share_wrong, f"{above:.3f}"])
    print_table(["direction", "confidence", "answered", "wrong", "splits above"], rows)


if __name__ == "__main__":
    main()
