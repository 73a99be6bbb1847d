"""Why kappa does or does not follow the specificity of a caption: the features, the training captions, the objective.

    python -m benchmarks.hierarchy --embeddings DIR --hierarchy DIR [--distribution vmf] [--seeds 0 1 ...]

The hierarchy is a folder of cached features whose test captions have a column `level`, 0 being the most general. Every
correlation is Spearman's with the level within a hierarchy, the mean over hierarchies. What is trained on hierarchies
is judged on other hierarchies (five folds, for heads mean ± standard deviation over them); the rest is trained on the
captions of --embeddings alone.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import machine, mean_and_deviation, print_table, train_head
from benchmarks.small_data import learned, recipe
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.evaluation import specificity_correlation
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


NUM_FOLDS = 5


def correlation(values: np.ndarray, split: EmbeddingSplit) -> float:
    return specificity_correlation(values, split.columns["level"], split.text_image_index)["mean_group_spearman"]


def folds(split: EmbeddingSplit) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of captions to train on and to judge, without a hierarchy in both."""
    groups = split.text_image_index.numpy()
    return GroupKFold(NUM_FOLDS).split(groups, groups=groups)


def part(split: EmbeddingSplit, rows: np.ndarray) -> EmbeddingSplit:
    """Some captions of a split, with all of its images."""
    index = torch.from_numpy(rows)
    return EmbeddingSplit(
        image_ids=split.image_ids,
        image_features=split.image_features[:],
        captions=[split.captions[row] for row in rows],
        text_features=split.text_features[index],
        text_image_index=split.text_image_index[index],
    )


@torch.no_grad()
def concentration(model: AsymVLMModel, features: torch.Tensor) -> np.ndarray:
    return model(text_features=features).concentration.numpy()


def ridge() -> Pipeline:
    """Linear regression on standardised features; the penalty is chosen by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", required=True, help="folder of cached features to train on")
    parser.add_argument("--hierarchy", required=True, help="folder of cached features whose test captions have levels")
    parser.add_argument("--distribution", default="power_spherical", choices=["power_spherical", "vmf"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()

    store = EmbeddingStore(arguments.embeddings)
    splits = {name: store.split(name) for name in ("train", "validation")}
    hierarchy = EmbeddingStore(arguments.hierarchy).split("test")
    features, level = hierarchy.text_features[:], hierarchy.columns["level"]
    train_features = splits["train"].text_features[:]
    print(f"{len(features)} captions in hierarchies, {len(train_features)} training captions; {machine()}\n")

    directions, train_directions = F.normalize(features, dim=-1), F.normalize(train_features, dim=-1)
    lengths = features.norm(dim=-1).numpy()
    statistics = {
        "words": np.array([len(caption.split()) for caption in hierarchy.captions], dtype=float),
        "length of the text features": lengths,
        "cosine of the nearest training caption": (directions @ train_directions.T).amax(dim=-1).numpy(),
        "cosine of its own image": (
            directions * F.normalize(hierarchy.image_features[hierarchy.text_image_index], dim=-1)
        )
        .sum(dim=-1)
        .numpy(),
    }
    names = sorted(set(level.tolist()))
    rows = [
        [
            name,
            *(f"{values[level == place].mean():.2f}" for place in names),
            f"{correlation(values, hierarchy):.2f}",
        ]
        for name, values in statistics.items()
    ]
    print_table(["of a caption, mean at level", *map(str, names), "rho with the level"], rows)

    rows = []
    for name, inputs in (
        ("text features", features),
        ("direction of the text features", directions),
        ("length of the text features", lengths[:, None]),
    ):
        inputs = np.asarray(inputs)
        predicted = np.empty(len(inputs))
        for train, held_out in folds(hierarchy):
            predicted[held_out] = ridge().fit(inputs[train], level[train]).predict(inputs[held_out])
        rows.append(
            [
                f"linear regression of the level on the {name}",
                "hierarchies",
                f"{correlation(predicted, hierarchy):.2f}",
            ]
        )
    words = np.log([len(caption.split()) for caption in splits["train"].captions])
    predicted = ridge().fit(train_features.numpy(), words).predict(features.numpy())
    rows.append(
        [
            "linear regression of log words on the text features",
            "embeddings",
            f"{correlation(predicted, hierarchy):.2f}",
        ]
    )

    heads = {
        "head, learned": recipe("learned"),
        "head, learned, without the features' length": learned({"normalize_text_features": True}, {}),
        "head, defaults": recipe("default"),
        "head, defaults, with the features' length": ({"normalize_text_features": False}, {}),
    }
    law = {"distribution": arguments.distribution}
    for name, (head, settings) in heads.items():
        found = []
        for seed in arguments.seeds:
            model, _ = train_head(splits, seed=seed, config={**law, **head}, training=settings)
            found.append(correlation(concentration(model, features), hierarchy))
        rows.append([name, "embeddings", mean_and_deviation(found, 2)])
        print(f"done: {name}", flush=True)
    groups = hierarchy.text_image_index.numpy()
    for name, (head, settings) in (("head, learned", recipe("learned")), ("head, defaults", recipe("default"))):
        found = []
        for seed, (train, held_out) in enumerate(folds(hierarchy)):
            # As many steps as on the embeddings, though there are fewer captions; a tenth of them chooses the epoch.
            longer = {**settings, "num_train_epochs": 5 * settings.get("num_train_epochs", 20)}
            chooses = np.isin(groups[train], np.unique(groups[train])[::10])
            halves = {"train": part(hierarchy, train[~chooses]), "validation": part(hierarchy, train[chooses])}
            model, _ = train_head(halves, seed=seed, config={**law, **head}, training=longer)
            judged = concentration(model, features[held_out])
            agreement = specificity_correlation(judged, level[held_out], groups[held_out])
            found.append(agreement["mean_group_spearman"])
        rows.append([name, "hierarchies", mean_and_deviation(found, 2)])
        print(f"done: {name}, on hierarchies", flush=True)
    print()
    print_table(["what predicts the level", "trained on", "rho with the level"], rows)


if __name__ == "__main__":
    main()
