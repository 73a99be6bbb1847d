"""Scenes: heads on the frozen tiny CLIP against the best possible R@1 and the true ambiguity of every caption.

    python benchmarks/scenes.py [--seeds 0 1 2]

The test split shows only attribute combinations that neither the tiny CLIP nor the heads have seen. R@1 is given as
measured and, in brackets, as a share of the best possible, both averaged over the pairings of captions and pictures
that the world allows: this leaves out the luck of one draw, about 0.01.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import machine, mean_and_deviation, print_table, train_head
from transformers import AutoProcessor

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.data import EmbeddingSplit
from modeling_asymvlm.embedding import cached_features
from modeling_asymvlm.evaluation import rank_both_ways, recall_at_k
from modeling_asymvlm.objective import pair_scores
from modeling_asymvlm.pairs import SPLITS, load_splits, read_pairs
from modeling_asymvlm.report import evaluate_split


REPOSITORY = Path(__file__).resolve().parents[1]
SCENES = REPOSITORY / "examples" / "scenes"
sys.path.insert(0, str(SCENES))

from oracle import best_recall, expected_recall, oracle_scores, split_fits  # noqa: E402


def scenes_features(cache: Path) -> tuple[dict[str, EmbeddingSplit], Any]:
    """The features of the tiny CLIP for every split, and the test split as a data set."""
    subprocess.run([sys.executable, str(SCENES / "generate.py")], check=True, stdout=subprocess.DEVNULL)
    loaded, folder = load_splits(str(SCENES / "data"))
    model = AsymVLMModel.from_vlm_pretrained(SCENES / "tiny_clip")
    processor = AutoProcessor.from_pretrained(SCENES / "tiny_clip")
    pairs = {name: read_pairs(dataset, folder) for name, dataset in loaded.items()}
    store, _ = cached_features(cache, model, processor, pairs, batch_size=256)
    return {name: store.split(name) for name in SPLITS}, loaded["test"]


@torch.no_grad()
def test_scores(model: AsymVLMModel | None, split: EmbeddingSplit) -> torch.Tensor:
    """Scores of shape (captions, images): of a head, or the cosine of the backbone's own features."""
    if model is None:
        return pair_scores(split.text_features, split.image_features, distribution="deterministic")
    eta = model.get_text_features(text_features=split.text_features).pooler_output
    law = {"distribution": model.config.distribution, "normalizer": model.config.normalizer}
    return pair_scores(eta, split.image_features, **law)


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

    def row(name: str, runs: list[dict[str, Any]]) -> list[str]:
        cells = [name]
        for direction, expected, key in (
            ("text_to_image", 0, "text_to_image"),
            ("image_to_text", 1, "image_to_text_by_retrieved_caption"),
        ):
            recall = mean_and_deviation([run["retrieval"][f"{direction}_recall@1"] for run in runs])
            share = mean_and_deviation([100 * run["expected"][expected] / best[expected] for run in runs], 1)
            cells.append(f"{recall} ({share} %)")
            for metric in ("spearman", "r_squared"):
                values = [run["uncertainty"][key][metric] for run in runs if "uncertainty" in run]
                cells.append(mean_and_deviation(values, 2) if values else "")
        for key, digits in (("rank_correlation_with_ambiguity", 3), ("seconds", 0)):
            values = [run[key] for run in runs if key in run]
            cells.append(mean_and_deviation(values, digits) if values else "")
        return cells

    def scored(scores: torch.Tensor) -> dict[str, Any]:
        ranks = rank_both_ways(scores, splits["test"].text_image_index)
        return {"retrieval": recall_at_k(ranks), "expected": expected_recall(scores.T.numpy(), fits, scene_share)}

    rows = [row("oracle", [scored(torch.from_numpy(oracle_scores(fits, scene_share)).T)])]
    rows.append(row("cosine of the backbone", [scored(test_scores(None, splits["test"]))]))
    for name in ("deterministic", "vmf", "power_spherical"):
        runs = []
        for seed in arguments.seeds:
            model, figures = train_head(splits, seed=seed, config={"distribution": name})
            runs.append(
                {**figures, **evaluate_split(model, splits["test"]), **scored(test_scores(model, splits["test"]))}
            )
        rows.append(row(name, runs))
        print(f"done: {name}", flush=True)
    print()
    header = ["head", "t->i R@1", "S", "R²", "i->t R@1", "S", "R²", "rho(1/kappa, ambiguity)", "seconds"]
    print_table(header, rows)
    print(f"\nBest possible R@1, averaged over pairings: text->image {best[0]:.4f}, image->text {best[1]:.4f}")


if __name__ == "__main__":
    main()
