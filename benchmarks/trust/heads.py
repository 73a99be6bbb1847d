"""Default heads on parts of the data, as they ship."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.common import train_head
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.calibration.calibration import Calibration
from modeling_asymvlm.calibration.fitting import HeldOut
from modeling_asymvlm.calibration.presence import presence_trials
from modeling_asymvlm.evaluation import calibration_metrics, risk_coverage_curve, selective_metrics
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from modeling_asymvlm.training.search import images_of, pooled


LEVEL_OF_SIGNIFICANCE = 0.05


def subset(split: EmbeddingSplit, num_captions: int, seed: int) -> EmbeddingSplit:
    """Random images with all their captions, until there are so many captions."""
    counts = np.bincount(np.asarray(split.text_image_index), minlength=len(split.image_ids))
    order = np.random.default_rng(seed).permutation(len(counts))
    kept = order[: int(np.searchsorted(np.cumsum(counts[order]), num_captions)) + 1]
    return images_of(split, np.isin(np.arange(len(counts)), kept))


def halves(splits: Mapping[str, EmbeddingSplit], seed: int) -> dict[str, EmbeddingSplit]:
    """All pairs anew: a random half of the images is the test split, three quarters of the others are for training."""
    whole = pooled(*splits.values())
    place = np.random.default_rng(seed).permutation(len(whole.image_ids)) / len(whole.image_ids)
    masks = {"train": place < 3 / 8, "validation": (3 / 8 <= place) & (place < 1 / 2), "test": place >= 1 / 2}
    return {name: images_of(whole, mask) for name, mask in masks.items()}


def presence_figures(model: AsymVLMModel, calibration: Calibration, test: EmbeddingSplit) -> dict[str, Any]:
    """What presence is worth on test captions with and without their images, and the AUROC of the top-1 cosine."""
    held_out = HeldOut(model, test, seed=0)
    trials = presence_trials(
        held_out.text_embeds, held_out.image_embeds, held_out.index, calibration.present.own_cosine, shares=(1.0,)
    )
    probability, present = calibration.present.regression(trials.features).numpy(), trials.present.numpy()
    reliability = calibration_metrics(probability, present, strategy="quantile")
    return {
        "auroc": selective_metrics(-probability, present)["auroc"],
        "top1_cosine_auroc": selective_metrics(-trials.features[:, 0].numpy(), present)["auroc"],
        "ece": reliability["expected_calibration_error"],
        "calibration": reliability,
        "risk_coverage": {
            "presence": risk_coverage_curve(-probability, present, max_points=200),
            "top-1 cosine": risk_coverage_curve(-trials.features[:, 0].numpy(), present, max_points=200),
        },
    }


def judge(splits: Mapping[str, EmbeddingSplit], seed: int) -> dict[str, Any]:
    """A default head on these splits, as it ships, on the test split."""
    model, figures = train_head(dict(splits), seed=seed, config={})
    calibration = Calibration.fit(model, splits["train"], splits["validation"])
    test = splits["test"]
    results = evaluate_split(model, test, calibration=calibration)
    presence = presence_figures(model, calibration, test)
    typicality = calibration.typicality(test.text_features[:])
    return {
        **results,
        **figures,
        "correction": calibration.correction,
        "presence": presence,
        "flagged": float((typicality < LEVEL_OF_SIGNIFICANCE).mean()),
        "reliability": {
            **{name: results["confidences"][name]["calibration"] for name in ("text_confidence", "confidence")},
            "presence": presence["calibration"],
        },
        "calibration": calibration,
        "model": model,
        "splits": dict(splits),
    }
