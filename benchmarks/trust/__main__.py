"""Is the default head never worse than its backbone, and are its confidences right?

    python -m benchmarks.trust [--scenes] [--stores NAME=DIR ...] [--hierarchy DIR] [--seeds 0 1 2]
                               [--captions 100 300 1000 5000] [--halves 10] [--ablations] [--plots DIR]

Every head is the default of the training command, trained on the training split, and kept, calibrated and chosen on
the validation split. The test split is read once, for the tables. Differences are those of the head, as it ships, to
the backbone's cosine with a scale fitted on validation; in brackets the lowest and the highest end of the paired 95 %
intervals of all seeds. Confidences are means over the seeds, in brackets the lowest lower end.

With `--captions`, training sees the images of about so many captions alone. With `--halves`, all pairs of a store are
cut anew so many times, half of the images for the test. A hierarchy is a store in the space of the store named
`flickr8k_lit`, whose captions have levels: typicality tells them from that store's test captions. `--ablations` takes
the head of the first seed of each store apart.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPOSITORY, machine, print_table, scenes_features
from benchmarks.trust.ablations import Ablation
from benchmarks.trust.heads import halves, judge, subset
from benchmarks.trust.tables import confidence_row, gain, never_worse, typicality_rows
from modeling_asymvlm.pairs.splits import SPLITS
from modeling_asymvlm.reporting.plots import calibration_plot, risk_coverage_plot
from modeling_asymvlm.store.embedding_store import EmbeddingStore


def draw(folder: Path, name: str, run: dict[str, Any]) -> None:
    """Risk against coverage of first results and of presence, and the reliability of every probability."""
    folder.mkdir(parents=True, exist_ok=True)
    first = {
        "1/kappa": run["risk_coverage"]["uncertainty"]["text_to_image"],
        "posterior": run["risk_coverage"]["posterior"]["text_to_image"],
    }
    for of, curves in (("", first), ("presence_", run["presence"]["risk_coverage"])):
        place = folder / f"trust_{name}_{of}risk_coverage.png"
        risk_coverage_plot(curves, place, title=f"{name}: {'is it there?' if of else 'is the first result right?'}")
    calibration_plot(run["reliability"], folder / f"trust_{name}_reliability.png", title=f"{name}: stated and true")


def arguments_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", action="store_true", help="take the embedded example, too")
    parser.add_argument("--stores", nargs="*", default=[], metavar="NAME=DIR", help="stores with all three splits")
    parser.add_argument("--hierarchy", help="store with levels, in the space of the store named flickr8k_lit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--captions", type=int, nargs="*", default=[], help="sizes of the training subsets")
    parser.add_argument("--halves", type=int, default=0, help="number of random halves, in place of the own splits")
    parser.add_argument("--ablations", action="store_true", help="take the calibration of the first seed apart")
    parser.add_argument("--plots", type=Path, help="folder for plots of the first seed")
    arguments = parser.parse_args()
    if not arguments.scenes and not arguments.stores:
        parser.error("give --scenes, or --stores NAME=DIR")
    return arguments


def print_tables(runs: dict[str, list[dict[str, Any]]]) -> None:
    print("\nDifferences to the backbone's cosine with a fitted scale, test split:\n")
    print_table(
        ["set", "t->i R@1", "i->t R@1", "NLL t->i (lower is better)"],
        [never_worse(name, of_name) for name, of_name in runs.items()],
    )
    print("\nAs it ships, test split:\n")
    header = ["set", "t->i R@1", "uncorrected", "cosine", "i->t R@1", "cosine", "NLL", "AUROC", "AURC", "beta"]
    print_table([*header, "rho(1/kappa, ambiguity)"], [gain(name, of_name) for name, of_name in runs.items()])
    print("\nAUROC [lowest lower end], calibration error, test split:\n")
    header = ["set", "1/kappa", "text alone", "posterior", "confidence", "posterior of the cosine", "presence"]
    print_table([*header, "% flagged at p = .05"], [confidence_row(name, of_name) for name, of_name in runs.items()])


def print_ablations(name: str, run: dict[str, Any]) -> None:
    ablation = Ablation(run["model"], run["splits"])
    print(f"\n{name}, evidence correction text -> image:\n")
    print_table(["reference", "beta", "R@1", "NLL", "AUROC"], ablation.of_correction())
    print(f"\n{name}, AUROC of text alone:\n")
    print_table(["feature", "without it", "alone"], ablation.of_probe())


def main() -> None:
    arguments = arguments_given()
    named = dict(each.split("=", 1) for each in arguments.stores)
    stores = {name: {split: EmbeddingStore(place).split(split) for split in SPLITS} for name, place in named.items()}
    if arguments.scenes:
        stores["scenes"] = scenes_features(REPOSITORY / "outputs" / "scenes-embeddings")[0]
    seeds = list(range(arguments.halves)) or arguments.seeds
    print(f"{len(seeds)} {'halves' if arguments.halves else 'seeds'}; {machine()}\n", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, splits in stores.items():
        for size in arguments.captions or [None]:
            label = name if size is None else f"{name}, {size} captions"
            for seed in seeds:
                own = halves(splits, seed) if arguments.halves else splits
                train = own["train"] if size is None else subset(own["train"], size, seed)
                runs.setdefault(label, []).append(judge({**own, "train": train}, seed))
            seconds = np.mean([run["seconds"] for run in runs[label]])
            print(f"done: {label}, {len(train.captions)} training captions, {seconds:.0f} s of training", flush=True)
    print_tables(runs)
    if arguments.hierarchy:
        rows = typicality_rows(runs["flickr8k_lit"][0], EmbeddingStore(arguments.hierarchy).split("test"))
        print("\nTypicality, first seed:\n")
        print_table(["captions", "AUROC of typicality", "AUROC of kappa", "share with p < .05"], rows)
    for name, of_name in runs.items():
        if arguments.ablations:
            print_ablations(name, of_name[0])
        if arguments.plots is not None:
            draw(arguments.plots, name, of_name[0])


if __name__ == "__main__":
    main()
