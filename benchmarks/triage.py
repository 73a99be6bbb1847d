"""The thresholds of caption triage on Scenes, where it is known which captions say the same and which contradict.

    python -m benchmarks.triage [--distributions ...] [--seeds 0 1 2]

*Duplicates*: pairs of different captions of the test split are judged by their relative divergence; true ones name the
same values of the same attributes in other words. *Contradictions*: pairs drawn at random, as if they described one
picture, are judged by each divergence; true ones name different values of an attribute. The quantile is that of the
random pairs, so that a flag means "further apart than this share of pairs of captions".
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.distributions import kl_divergence

from benchmarks.common import REPOSITORY, machine, mean_and_deviation, print_table, scenes_features, train_head
from benchmarks.small_data import recipe
from modeling_asymvlm.scenes.oracle import split_attributes
from modeling_asymvlm.texts.divergences import (
    TextLaw,
    directional_divergence,
    relative_divergence,
    symmetric_divergence,
)
from modeling_asymvlm.texts.near_duplicates import law_of


DUPLICATE_DIVERGENCES = (0.02, 0.05, 0.1, 0.2, 0.4)
CONTRADICTION_QUANTILES = (0.25, 0.4, 0.5, 0.6)
NUM_RANDOM_PAIRS = 100_000
# No pair of captions that say the same is nearly as far apart: the rest need not be judged exactly.
LOWEST_COSINE = 0.3


def duplicate_rows(texts: TextLaw, captions: np.ndarray, means_same) -> list[list[float]]:
    """Flagged pairs, precision and recall at each threshold."""
    first, second = np.triu_indices(len(captions), 1)
    different = captions[first] != captions[second]
    close = different & ((texts.loc @ texts.loc.T)[first, second].numpy() > LOWEST_COSINE)
    total = means_same(first[different], second[different]).sum()
    first, second = first[close], second[close]
    divergence = relative_divergence(law_of(texts, first), law_of(texts, second)).numpy()
    same = means_same(first, second)
    rows = []
    for threshold in DUPLICATE_DIVERGENCES:
        flagged = divergence <= threshold
        rows.append([flagged.sum(), same[flagged].mean(), same[flagged].sum() / total])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distributions", nargs="+", default=["power_spherical"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "outputs" / "scenes-embeddings")
    arguments = parser.parse_args()

    arguments.cache.parent.mkdir(parents=True, exist_ok=True)
    splits, test_data = scenes_features(arguments.cache)
    scenes, named = split_attributes(test_data)
    captions = np.array(list(test_data["caption"]), dtype=object)
    row_of = {caption: row for row, caption in enumerate(splits["test"].captions)}
    features = splits["test"].text_features[torch.tensor([row_of[caption] for caption in captions])]

    def disagree(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (named[first] & named[second] & (scenes[first] != scenes[second])).any(axis=1)

    def means_same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (named[first] == named[second]).all(axis=1) & ~disagree(first, second)

    first, second = np.random.default_rng(0).integers(len(captions), size=(2, NUM_RANDOM_PAIRS))
    first, second = first[first != second], second[first != second]
    opposed = disagree(first, second)
    statistics = {
        "cosine": lambda one, two: 1 - (one.loc * two.loc).sum(-1),
        "symmetric divergence": symmetric_divergence,
        "smaller of the two KL": lambda one, two: torch.minimum(kl_divergence(one, two), kl_divergence(two, one)),
        "directional divergence": directional_divergence,
    }
    print(f"{len(captions)} captions, {len(arguments.seeds)} seeds; {machine()}\n")
    duplicates, contradictions, orders = [], [], []
    head, training = recipe("learned")
    for law in arguments.distributions:
        found = []
        rates: dict[str, list[list[float]]] = {name: [] for name in statistics}
        for seed in arguments.seeds:
            model, _ = train_head(splits, seed=seed, config={"distribution": law, **head}, training=training)
            with torch.no_grad():
                texts = model.get_text_distribution(text_features=features)
            found.append(duplicate_rows(texts, captions, means_same))
            for name, statistic in statistics.items():
                values = statistic(law_of(texts, first), law_of(texts, second)).numpy()
                flags = [values > np.quantile(values, quantile) for quantile in CONTRADICTION_QUANTILES]
                both = [(flag[opposed].mean(), flag[~opposed].mean()) for flag in flags]
                rates[name].append([roc_auc_score(opposed, values), *(rate for pair in both for rate in pair)])
        for threshold, runs in zip(DUPLICATE_DIVERGENCES, zip(*found, strict=True), strict=True):
            flagged, precision, recall = zip(*runs, strict=True)
            cells = mean_and_deviation(flagged, 0), mean_and_deviation(precision), mean_and_deviation(recall)
            duplicates.append([law, str(threshold), *cells])
        for name, runs in rates.items():
            auroc, *shares = (mean_and_deviation(values) for values in zip(*runs, strict=True))
            orders.append([law, name, auroc])
            pairs = zip(CONTRADICTION_QUANTILES, shares[::2], shares[1::2], strict=True)
            contradictions += [[law, name, str(quantile), *both] for quantile, *both in pairs]
    print_table(["head", "relative divergence", "pairs flagged", "precision", "recall"], duplicates)
    print()
    print_table(["head", "tells contradictions by", "AUROC"], orders)
    print()
    print_table(
        ["head", "by", "quantile", "flagged of contradictory pairs", "flagged of compatible pairs"], contradictions
    )


if __name__ == "__main__":
    main()
