"""Entailment of a general text by a specific one: AUROC of scores on Scenes and on caption hierarchies.

    python -m benchmarks.entailment [--embeddings DIR --hierarchy DIR] [--distributions ...] [--seeds 0 1 2]

On Scenes a caption entails another if it names the same values of all attributes that the other names, and more. In a
hierarchy, of HierarCaps for instance, a caption entails those of its own hierarchy at lower levels. True pairs are
told from the same pairs *reversed*, and from pairs of the specific caption with a general one of *another* picture: on
Scenes one that names the same attributes with another value among them, in hierarchies one of the same level. A
symmetric score gives 0.5 on reversed pairs. --embeddings are the features that heads for the hierarchy are trained on.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.distributions import kl_divergence

from benchmarks.common import REPOSITORY, machine, mean_and_deviation, print_table, scenes_features, train_head
from benchmarks.small_data import recipe
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.scenes.oracle import split_attributes
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.texts.divergences import TextLaw
from modeling_asymvlm.texts.entailment import entailment_score, entails


NUM_PAIRS = 5000

# Rows of specific captions, of general ones they entail, and of general ones they do not.
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def pairs_of_scenes(scenes: np.ndarray, named: np.ndarray) -> Pairs:
    """Pairs of captions, the general one naming at least one attribute; each draw of both counts once."""
    generator = np.random.default_rng(0)
    found: list[tuple[int, int, int]] = []
    while len(found) < NUM_PAIRS:
        specific = int(generator.integers(len(scenes)))
        narrower = (named <= named[specific]).all(axis=1) & (named.sum(axis=1) < named[specific].sum())
        narrower &= named.any(axis=1)
        agrees = ((scenes == scenes[specific]) | ~named).all(axis=1)
        general = np.flatnonzero(narrower & agrees)
        if not len(general):
            continue
        entailed = int(generator.choice(general))
        other = np.flatnonzero(narrower & ~agrees & (named == named[entailed]).all(axis=1))
        if len(other):
            found.append((specific, entailed, int(generator.choice(other))))
    specific_rows, entailed_rows, other_rows = np.array(found).T
    return specific_rows, entailed_rows, other_rows


def pairs_of_hierarchies(split: EmbeddingSplit) -> Pairs:
    """Every pair of levels of every hierarchy, and the same level of another hierarchy drawn at random."""
    level, group = np.asarray(split.columns["level"]), split.text_image_index.numpy()
    generator = np.random.default_rng(0)
    found = []
    for own in np.unique(group):
        rows = np.flatnonzero(group == own)
        found += [(one, two) for one in rows for two in rows if level[one] > level[two]]
    specific, entailed = np.array(found).T
    other = np.empty_like(entailed)
    for place, row in enumerate(entailed):
        other[place] = generator.choice(np.flatnonzero((level == level[row]) & (group != group[row])))
    return specific, entailed, other


@torch.no_grad()
def scores(model: AsymVLMModel, features: torch.Tensor, specific: np.ndarray, general: np.ndarray) -> dict[str, Any]:
    """Each score of pairs of captions, higher where the first entails the second, and the two verdicts."""
    eta = model(text_features=features).text_embeds
    law: Any = type(model.get_text_distribution(text_features=features[:1]))
    one: TextLaw = law.from_natural_parameter(eta[specific].double())
    two: TextLaw = law.from_natural_parameter(eta[general].double())
    directions = torch.nn.functional.normalize(features, dim=-1)
    return {
        "cosine of the backbone": (directions[specific] * directions[general]).sum(-1),
        "cosine of the mean directions": (one.loc * two.loc).sum(-1),
        "1/kappa of the general - 1/kappa of the specific": 1 / two.concentration - 1 / one.concentration,
        "-KL(specific ‖ general)": -kl_divergence(one, two),
        "divergence": entailment_score(one, two, method="divergence"),
        "inclusion": entailment_score(one, two, method="inclusion"),
        "verdict divergence": entails(one, two, method="divergence").double().mean().item(),
        "verdict inclusion": entails(one, two, method="inclusion").double().mean().item(),
    }


def judged(model: AsymVLMModel, features: torch.Tensor, pairs: Pairs) -> dict[str, list[float]]:
    """For each score, AUROC against reversed pairs and against others; for each verdict, how often it says yes."""
    specific, entailed, other = pairs
    kinds = (specific, entailed), (entailed, specific), (specific, other)
    true, reverse, of_other = (scores(model, features, *kind) for kind in kinds)
    results = {}
    for name, values in true.items():
        if name.startswith("verdict"):
            results[name] = [values, reverse[name], of_other[name]]
            continue
        labels = np.repeat([1, 0], len(specific))
        results[name] = [
            roc_auc_score(labels, torch.cat([values, wrong[name]]).numpy()) for wrong in (reverse, of_other)
        ]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", help="folder of cached features to train on, beside Scenes")
    parser.add_argument("--hierarchy", help="folder of cached features whose test captions have levels")
    parser.add_argument("--distributions", nargs="+", default=["power_spherical"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "outputs" / "scenes-embeddings")
    arguments = parser.parse_args()
    if (arguments.embeddings is None) != (arguments.hierarchy is None):
        parser.error("--embeddings and --hierarchy go together.")

    arguments.cache.parent.mkdir(parents=True, exist_ok=True)
    splits, test_data = scenes_features(arguments.cache)
    row_of = {image_id: row for row, image_id in enumerate(splits["test"].image_ids)}
    order = torch.tensor([row_of[image_id] for image_id in test_data["image_id"]])  # one caption an image
    features = splits["test"].text_features[:][torch.argsort(splits["test"].text_image_index)[order]]
    problems: list[tuple[str, Any, tuple[dict, dict], torch.Tensor, Pairs]] = [
        ("Scenes", splits, recipe("learned"), features, pairs_of_scenes(*split_attributes(test_data)))
    ]
    if arguments.hierarchy is not None:
        store = EmbeddingStore(arguments.embeddings)
        of_store = {name: store.split(name) for name in ("train", "validation")}
        hierarchy = EmbeddingStore(arguments.hierarchy).split("test")
        pairs = pairs_of_hierarchies(hierarchy)
        for name, settings in (("hierarchy, learned", recipe("learned")), ("hierarchy, defaults", recipe("default"))):
            problems.append((name, of_store, settings, hierarchy.text_features[:], pairs))
    print(f"{len(arguments.seeds)} seeds; {machine()}\n")
    rows, verdicts = [], []
    for name, train_splits, (config, training), texts, pairs in problems:
        for law in arguments.distributions:
            runs = []
            for seed in arguments.seeds:
                model, _ = train_head(
                    train_splits, seed=seed, config={"distribution": law, **config}, training=training
                )
                runs.append(judged(model, texts, pairs))
            for score in runs[0]:
                cells = [mean_and_deviation(values) for values in zip(*(run[score] for run in runs), strict=True)]
                (verdicts if score.startswith("verdict") else rows).append(
                    [name, law, score.removeprefix("verdict "), *cells]
                )
            print(f"done: {name}, {law}", flush=True)
    print()
    print_table(["texts", "head", "score", "AUROC, reversed", "AUROC, other picture"], rows)
    print()
    print_table(["texts", "head", "entails by", "true pairs", "reversed", "other picture"], verdicts)


if __name__ == "__main__":
    main()
