"""What each setting of the head gives on a small set of cached features, and whether kappa follows specificity.

    python -m benchmarks.small_data --embeddings DIR [--hierarchy DIR] [--distributions ...] [--seeds 0 1 ...]

DIR is a folder of cached features with train, validation and test; the hierarchy is one whose test captions have a
column `level`, 0 being the most general. Heads are chosen by validation loss; every figure is of the test split.
AUROC and NLL are of the retrieval posterior softmax(tau * log-likelihood) over the images of the split: whether its
largest value tells that the first result is right, and the nats it leaves to the caption's own image. The cosine's
posterior takes the scale of lowest NLL on validation. The interval is the bootstrap's over images, of the first seed.
"""

import argparse
from functools import partial
from typing import Any

from benchmarks.common import machine, mean_and_deviation, print_table, train_head
from modeling_asymvlm.evaluation import (
    EmbeddingScores,
    fit_logit_scale,
    posterior_metrics,
    rank_both_ways,
    retrieval_posterior,
)
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.pairs.layouts import SPLITS
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.training.recipes import RECIPES


Setting = tuple[dict[str, Any], dict[str, Any]]


def recipe(name: str) -> Setting:
    """The head and the training of a recipe, as they differ from the defaults."""
    return dict(RECIPES[name].head), dict(RECIPES[name].training)


def learned(head: dict[str, Any], training: dict[str, Any]) -> Setting:
    """The recipe `learned` with some of its arguments replaced."""
    return {**RECIPES["learned"].head, **head}, {**RECIPES["learned"].training, **training}


# For captions of every degree of specificity, as on Scenes; docs/small_data.md says what was tried.
EVERY_SPECIFICITY = learned({"input_dropout_prob": 0.2}, {"num_train_epochs": 20})

KEPT_DIRECTION = learned(
    {
        "mean_direction": "backbone",
        "hidden_dropout_prob": 0.5,
        "initial_concentration": 60.0,
        "logit_scale_init": 0.4,
    },
    {"learning_rate": 2e-3},
)

# The head and the training of each setting, as they differ from the defaults.
SETTINGS: dict[str, Setting] = {
    "learned": recipe("learned"),
    "direction kept": KEPT_DIRECTION,
    "paper": recipe("paper"),
    "defaults": recipe("default"),
}


def cosine_figures(splits: dict[str, EmbeddingSplit]) -> dict[str, float]:
    """`auroc` and `negative_log_likelihood` text -> image of the posterior that the backbone's own cosine gives."""
    validation, test = (
        EmbeddingScores(
            split.text_features[:], split.image_features[:], partial(pair_scores, distribution="deterministic")
        )
        for split in (splits["validation"], splits["test"])
    )
    scale = fit_logit_scale(validation, splits["validation"].text_image_index)
    index = splits["test"].text_image_index
    posterior = retrieval_posterior(test, index, logit_scale=scale)
    return posterior_metrics(posterior, rank_both_ways(test, index))["text_to_image"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", required=True, help="folder of cached features")
    parser.add_argument("--hierarchy", help="folder of cached features whose test captions have levels")
    parser.add_argument("--distributions", nargs="+", default=["power_spherical", "vmf"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()

    store = EmbeddingStore(arguments.embeddings)
    splits = {name: store.split(name) for name in SPLITS}
    hierarchy = EmbeddingStore(arguments.hierarchy).split("test") if arguments.hierarchy else None
    print(f"{len(splits['train'].captions)} training captions, {len(arguments.seeds)} seeds; {machine()}\n")
    rows = []
    for law in arguments.distributions:
        for name, (config, training) in SETTINGS.items():
            runs = []
            for seed in arguments.seeds:
                model, figures = train_head(
                    splits, seed=seed, config={"distribution": law, **config}, training=training
                )
                test = evaluate_split(model, splits["test"])
                level = float("nan")
                if hierarchy is not None:
                    level = evaluate_split(model, hierarchy)["specificity"]["mean_group_spearman"]
                runs.append({**figures, **test, "level": level})
            text, image = "text_to_image", "image_to_text_by_retrieved_caption"
            columns = [
                ([run["retrieval"]["text_to_image_recall@1"] for run in runs], 4),
                ([run["uncertainty"][text]["spearman"] for run in runs], 2),
                ([run["uncertainty"][text]["r_squared"] for run in runs], 2),
                ([run["retrieval"]["image_to_text_recall@1"] for run in runs], 3),
                ([run["uncertainty"][image]["spearman"] for run in runs], 2),
                ([run["uncertainty"][image]["r_squared"] for run in runs], 2),
                ([run["posterior"][text]["auroc"] for run in runs], 3),
                ([run["posterior"][text]["negative_log_likelihood"] for run in runs], 3),
                ([run["level"] for run in runs], 2),
                ([run["seconds"] for run in runs], 0),
            ]
            rows.append([f"{law}, {name}", *(mean_and_deviation(values, digits) for values, digits in columns)])
            rows[-1][5] += " [{:.2f}, {:.2f}]".format(*runs[0]["intervals"]["uncertainty"][image]["spearman"])
            print(f"done: {rows[-1][0]}", flush=True)
    cosine = test["backbone_retrieval"]
    recalls = f"{cosine['text_to_image_recall@1']:.4f}", f"{cosine['image_to_text_recall@1']:.3f}"
    posterior = cosine_figures(splits)
    posterior_cells = f"{posterior['auroc']:.3f}", f"{posterior['negative_log_likelihood']:.3f}"
    rows.append(["cosine of the backbone", recalls[0], "", "", recalls[1], "", "", *posterior_cells, "", ""])
    trends = ["S", "R²"]
    header = ["setting", "t->i R@1", *trends, "i->t R@1", *trends, "AUROC", "NLL", "rho(kappa, level)", "seconds"]
    print()
    print_table(header, rows)


if __name__ == "__main__":
    main()
