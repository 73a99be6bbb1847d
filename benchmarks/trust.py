"""Is the default head never worse than its backbone, and are its confidences right?

    python -m benchmarks.trust [--scenes] [--stores NAME=DIR ...] [--hierarchy DIR] [--seeds 0 1 2]
                               [--captions 100 300 1000 5000] [--plots DIR]

Every head is the default of the training command, trained on the training split, or on the images of about so many of
its captions, and kept, calibrated and chosen on the validation split. The test split is read once, for the tables.
Differences are those of the head, as it ships, to the backbone's cosine with a scale fitted on validation; in brackets
the lowest and the highest end of the paired 95 % intervals of all seeds. Confidences are means over the seeds, in
brackets the lowest lower end. A hierarchy is a store in the space of the store named `flickr8k_lit`, whose captions
have levels: typicality tells them from that store's test captions.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import REPOSITORY, machine, mean_and_deviation, print_table, scenes_features, train_head
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.calibration.calibration import Calibration
from modeling_asymvlm.calibration.corpus import text_embeds_of
from modeling_asymvlm.calibration.fitting import HeldOut
from modeling_asymvlm.calibration.presence import presence_trials
from modeling_asymvlm.evaluation import calibration_metrics, selective_metrics
from modeling_asymvlm.pairs.splits import SPLITS
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.reporting.plots import calibration_plot, risk_coverage_plot
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


CONFIDENCES = ("concentration", "text_confidence", "posterior", "confidence", "backbone_posterior")
RETRIEVAL = ("text_to_image_recall@1", "image_to_text_recall@1")
LEVEL_OF_SIGNIFICANCE = 0.05


def subset(split: EmbeddingSplit, num_captions: int, seed: int) -> EmbeddingSplit:
    """Random images with all their captions, until there are so many captions."""
    index = np.asarray(split.text_image_index)
    counts = np.bincount(index, minlength=len(split.image_ids))
    order = np.random.default_rng(seed).permutation(len(counts))
    kept = np.sort(order[: int(np.searchsorted(np.cumsum(counts[order]), num_captions)) + 1])
    position = np.full(len(counts), -1)
    position[kept] = np.arange(len(kept))
    rows = np.flatnonzero(position[index] >= 0)
    return EmbeddingSplit(
        image_ids=[split.image_ids[row] for row in kept.tolist()],
        image_features=split.image_features[torch.from_numpy(kept)],
        captions=[split.captions[row] for row in rows.tolist()],
        text_features=split.text_features[torch.from_numpy(rows)],
        text_image_index=torch.from_numpy(position[index[rows]]),
    )


def presence_figures(model: AsymVLMModel, calibration: Calibration, test: EmbeddingSplit) -> dict[str, float]:
    """AUROC and calibration error of presence on test captions with and without their images, and of top-1 cosine."""
    held_out = HeldOut(model, test, seed=0)
    trials = presence_trials(
        held_out.text_embeds, held_out.image_embeds, held_out.index, calibration.present.own_cosine, shares=(1.0,)
    )
    probability, present = calibration.present.regression(trials.features).numpy(), trials.present.numpy()
    error = calibration_metrics(probability, present, strategy="quantile")["expected_calibration_error"]
    auroc, top = (selective_metrics(-each, present)["auroc"] for each in (probability, trials.features[:, 0].numpy()))
    return {"auroc": auroc, "top1_cosine_auroc": top, "ece": error}


def judge(splits: Mapping[str, EmbeddingSplit], seed: int) -> dict[str, Any]:
    """A default head on these splits, as it ships, on the test split."""
    model, figures = train_head(dict(splits), seed=seed, config={})
    calibration = Calibration.fit(model, splits["train"], splits["validation"])
    test = splits["test"]
    results = evaluate_split(model, test, calibration=calibration)
    typicality = calibration.typicality(test.text_features[:])
    return {
        **results,
        **figures,
        "correction": calibration.correction,
        "presence": presence_figures(model, calibration, test),
        "flagged": float((typicality < LEVEL_OF_SIGNIFICANCE).mean()),
        "calibration": calibration,
        "model": model,
    }


def never_worse(name: str, runs: list[dict[str, Any]]) -> list[str]:
    row = [name]
    for figure in (*RETRIEVAL, "negative_log_likelihood"):
        differences = [run["differences_to_backbone"][figure] for run in runs]
        low, high = (extreme([each["interval"][end] for each in differences]) for end, extreme in ((0, min), (1, max)))
        mean = np.mean([each["mean"] for each in differences])
        row.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    return row


def gain(name: str, runs: list[dict[str, Any]]) -> list[str]:
    posterior = [run["posterior"]["text_to_image"] for run in runs]
    columns = [
        ([run["retrieval"][RETRIEVAL[0]] for run in runs], 4),
        ([run["uncorrected_retrieval"][RETRIEVAL[0]] for run in runs], 4),
        ([run["backbone_retrieval"][RETRIEVAL[0]] for run in runs], 4),
        ([run["retrieval"][RETRIEVAL[1]] for run in runs], 4),
        ([run["backbone_retrieval"][RETRIEVAL[1]] for run in runs], 4),
        ([each["negative_log_likelihood"] for each in posterior], 3),
        ([each["auroc"] for each in posterior], 3),
        ([each["aurc"] for each in posterior], 3),
        ([run["correction"].beta for run in runs], 2),
        ([run["rank_correlation_with_ambiguity"] for run in runs if "rank_correlation_with_ambiguity" in run], 4),
    ]
    return [name, *(mean_and_deviation(values, digits) if values else "" for values, digits in columns)]


def confidence_row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    row = [name]
    for confidence in CONFIDENCES:
        worth = [run["confidences"][confidence] for run in runs]
        low = min(each["auroc_interval"][0] for each in worth)
        cell = f"{np.mean([each['auroc'] for each in worth]):.3f} [{low:.3f}]"
        if "expected_calibration_error" in worth[0]:
            cell += f", {np.mean([each['expected_calibration_error'] for each in worth]):.3f}"
        row.append(cell)
    presence = {key: np.mean([run["presence"][key] for run in runs]) for key in runs[0]["presence"]}
    row.append(f"{presence['auroc']:.3f}, {presence['ece']:.3f} (top-1 cosine {presence['top1_cosine_auroc']:.3f})")
    return [*row, mean_and_deviation([100 * run["flagged"] for run in runs], 1)]


def typicality_rows(run: dict[str, Any], test: EmbeddingSplit, hierarchy: EmbeddingSplit) -> list[list[str]]:
    """How well typicality tells captions of each level from test captions, and what concentration does."""
    calibration: Calibration = run["calibration"]
    levels = np.asarray(hierarchy.columns["level"])
    rows = []
    for level in np.unique(levels):
        own = torch.from_numpy(np.flatnonzero(levels == level))
        features = torch.cat([test.text_features[:], hierarchy.text_features[own]])
        inside = np.arange(len(features)) < len(test.captions)
        distance = calibration.typical.distance(features).numpy()
        kappa = torch.linalg.vector_norm(text_embeds_of(run["model"], features), dim=-1).numpy()
        share = float((calibration.typicality(hierarchy.text_features[own]) < LEVEL_OF_SIGNIFICANCE).mean())
        figures = [selective_metrics(distance, inside)["auroc"], selective_metrics(-kappa, inside)["auroc"], share]
        rows.append([f"HierarCaps level {level}", *(f"{figure:.3f}" for figure in figures)])
    return rows


def draw(folder: Path, name: str, run: dict[str, Any]) -> None:
    """Risk against coverage, and the reliability of the posterior, of one run."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = {
        f"{role}, text -> image": run["risk_coverage"][role]["text_to_image"] for role in ("uncertainty", "posterior")
    }
    risk_coverage_plot(curves, folder / f"trust_{name}_risk_coverage.png", title=f"{name}: risk against coverage")
    calibration = {"posterior, text -> image": run["posterior"]["text_to_image"]["calibration"]}
    calibration_plot(calibration, folder / f"trust_{name}_reliability.png", title=f"{name}: is the posterior right?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", action="store_true", help="take the embedded example, too")
    parser.add_argument("--stores", nargs="*", default=[], metavar="NAME=DIR", help="stores with all three splits")
    parser.add_argument("--hierarchy", help="store with levels, in the space of the store named flickr8k_lit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--captions", type=int, nargs="*", default=[], help="sizes of subsets of larger stores")
    parser.add_argument("--plots", type=Path, help="folder for plots of the first seed")
    arguments = parser.parse_args()
    named = dict(each.split("=", 1) for each in arguments.stores)
    stores = {name: {split: EmbeddingStore(place).split(split) for split in SPLITS} for name, place in named.items()}
    if arguments.scenes:
        stores["scenes"] = scenes_features(REPOSITORY / "outputs" / "scenes-embeddings")[0]
    if not stores:
        parser.error("give --scenes, or --stores NAME=DIR")
    print(f"{len(arguments.seeds)} seeds; {machine()}\n", flush=True)
    all_runs: dict[str, list[dict[str, Any]]] = {}
    for name, splits in stores.items():
        sizes = [size for size in arguments.captions if 2 * size < len(splits["train"].captions)]
        for size in [*sizes, None]:
            label = name if size is None else f"{name}, {size} captions"
            for seed in arguments.seeds:
                train = splits["train"] if size is None else subset(splits["train"], size, seed)
                all_runs.setdefault(label, []).append(judge({**splits, "train": train}, seed))
            seconds = np.mean([run["seconds"] for run in all_runs[label]])
            print(f"done: {label}, {len(train.captions)} training captions, {seconds:.0f} s of training", flush=True)
    print("\nDifferences to the backbone's cosine with a fitted scale, test split:\n")
    print_table(
        ["set", "t->i R@1", "i->t R@1", "NLL t->i (lower is better)"],
        [never_worse(name, runs) for name, runs in all_runs.items()],
    )
    print("\nAs it ships, test split:\n")
    header = ["set", "t->i R@1", "uncorrected", "cosine", "i->t R@1", "cosine", "NLL", "AUROC", "AURC", "beta"]
    print_table([*header, "rho(1/kappa, ambiguity)"], [gain(name, runs) for name, runs in all_runs.items()])
    print("\nAUROC [lowest lower end], calibration error, test split:\n")
    header = ["set", "1/kappa", "text alone", "posterior", "confidence", "posterior of the cosine", "presence"]
    print_table([*header, "% flagged at p = .05"], [confidence_row(name, runs) for name, runs in all_runs.items()])
    if arguments.hierarchy:
        hierarchy = EmbeddingStore(arguments.hierarchy).split("test")
        rows = typicality_rows(all_runs["flickr8k_lit"][0], stores["flickr8k_lit"]["test"], hierarchy)
        print("\nTypicality, first seed:\n")
        print_table(["captions", "AUROC of typicality", "AUROC of kappa", "share with p < .05"], rows)
    if arguments.plots is not None:
        for name in stores:
            draw(arguments.plots, name, all_runs[name][0])


if __name__ == "__main__":
    main()
