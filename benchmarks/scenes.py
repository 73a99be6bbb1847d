"""Scenes: heads on the frozen tiny CLIP against the best possible R@1 and the true ambiguity of every caption.

    python -m benchmarks.scenes [--seeds 0 1 2]

The test split shows only attribute combinations that neither the tiny CLIP nor the heads have seen. R@1 is given as
measured and, in brackets, as a share of the best possible, both averaged over the pairings of captions and pictures
that the world allows: this leaves out the luck of one draw, about 0.01. S and R² come in the same two ways, from the
hits of this one draw and, in brackets, from the probability of each first result to be right. The oracle's row takes
the true ambiguity as the uncertainty: it shows what the luck of the draw leaves of a perfect ordering.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import REPOSITORY, machine, mean_and_deviation, print_table, scenes_features, train_head
from benchmarks.small_data import EVERY_SPECIFICITY, recipe
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.evaluation import (
    rank_both_ways,
    rank_correlation,
    recall_at_k,
    retrieval_uncertainty_metrics,
    uncertainty_metrics,
)
from modeling_asymvlm.model.objective import Likelihood
from modeling_asymvlm.scenes.oracle import (
    best_recall,
    image_to_text_posterior,
    oracle_scores,
    split_fits,
    text_to_image_posterior,
)
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


@torch.no_grad()
def test_scores(model: AsymVLMModel | None, split: EmbeddingSplit) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores of shape (captions, images) and kappa of a head, or the cosine of the backbone's own features."""
    text_features, image_features = split.text_features[:], split.image_features[:]
    if model is None:
        return Likelihood("deterministic").scores(text_features, image_features), None
    eta = model.get_text_features(text_features=text_features).pooler_output
    return model.config.law.scores(eta, image_features), torch.linalg.vector_norm(eta, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "outputs" / "scenes-embeddings")
    arguments = parser.parse_args()

    arguments.cache.parent.mkdir(parents=True, exist_ok=True)
    splits, test_data = scenes_features(arguments.cache)
    fits, scene_share = split_fits(test_data, held_out=True)
    best = best_recall(fits, scene_share)
    print(f"{len(splits['train'].captions)} training captions, {len(arguments.seeds)} seeds; {machine()}\n")

    chance_of_pair = text_to_image_posterior(fits), image_to_text_posterior(fits, scene_share)
    ambiguity = splits["test"].columns["ambiguity"]

    def judged(scores: torch.Tensor, uncertainty: Any = None) -> dict[str, Any]:
        ranks = rank_both_ways(scores, splits["test"].text_image_index)
        queries = np.arange(scores.shape[0]), np.arange(scores.shape[1])
        chances = {
            "text_to_image": chance_of_pair[0][queries[0], ranks.text_to_image_top],
            "image_to_text": chance_of_pair[1][ranks.image_to_text_top, queries[1]],
        }
        figures: dict[str, Any] = {"retrieval": recall_at_k(ranks), "chances": chances}
        if uncertainty is not None:
            uncertainty = np.asarray(uncertainty)
            of_query = {"text_to_image": uncertainty, "image_to_text": uncertainty[ranks.image_to_text_top]}
            trends = retrieval_uncertainty_metrics(ranks, uncertainty)
            figures["drawn"] = {
                "text_to_image": trends["text_to_image"],
                "image_to_text": trends["image_to_text_by_retrieved_caption"],
            }
            figures["expected"] = {d: uncertainty_metrics(of_query[d], chances[d]) for d in of_query}
            figures["rho"] = rank_correlation(uncertainty, ambiguity)
        return figures

    def row(name: str, runs: list[dict[str, Any]]) -> list[str]:
        cells = [name]
        for direction, possible in zip(("text_to_image", "image_to_text"), best, strict=True):
            recall = mean_and_deviation([run["retrieval"][f"{direction}_recall@1"] for run in runs])
            share = mean_and_deviation([100 * run["chances"][direction].mean() / possible for run in runs], 1)
            cells.append(f"{recall} ({share} %)")
            for metric in ("spearman", "r_squared"):
                ways = [[run[way][direction][metric] for run in runs if way in run] for way in ("drawn", "expected")]
                cells.append("{} ({})".format(*(mean_and_deviation(way, 2) for way in ways)) if ways[0] else "")
        for key, digits in (("rho", 3), ("seconds", 0)):
            values = [run[key] for run in runs if key in run]
            cells.append(mean_and_deviation(values, digits) if values else "")
        return cells

    oracle = torch.from_numpy(oracle_scores(fits, scene_share)).T
    rows = [row("oracle, true ambiguity", [judged(oracle, ambiguity)])]
    rows.append(row("cosine of the backbone", [judged(test_scores(None, splits["test"])[0])]))
    heads: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        f"{name}, learned": ({"distribution": name, **recipe("learned")[0]}, recipe("learned")[1])
        for name in ("deterministic", "vmf", "power_spherical")
    }
    heads["power_spherical, learned, input dropout"] = EVERY_SPECIFICITY
    heads["power_spherical, defaults"] = recipe("default")
    for name, (config, training) in heads.items():
        runs = []
        for seed in arguments.seeds:
            model, figures = train_head(splits, seed=seed, config=config, training=training)
            scores, concentration = test_scores(model, splits["test"])
            uncertainty = 1 / concentration if model.config.law.has_concentration else None
            runs.append({**judged(scores, uncertainty), **figures})
        rows.append(row(name, runs))
        print(f"done: {name}", flush=True)
    print()
    header = ["head", "t->i R@1", "S", "R²", "i->t R@1", "S", "R²", "rho(1/kappa, ambiguity)", "seconds"]
    print_table(header, rows)
    print(f"\nBest possible R@1, averaged over pairings: text->image {best[0]:.4f}, image->text {best[1]:.4f}")


if __name__ == "__main__":
    main()
