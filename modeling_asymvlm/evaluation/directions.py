"""Every confidence in both directions of retrieval and in both roles, and against an oracle."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import as_array, check_probabilities
from .calibration import calibration_metrics
from .levels import uncertainty_metrics
from .posterior import RetrievalPosterior
from .ranks import RetrievalRanks
from .selective import selective_metrics


def confidence_metrics(uncertainty: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 10) -> dict[str, Any]:
    """[`uncertainty_metrics`] and [`selective_metrics`] together, whose arguments and errors these are."""
    return {
        **uncertainty_metrics(uncertainty, correct, num_bins=num_bins),
        **selective_metrics(uncertainty, correct),
    }


def retrieval_uncertainty_metrics(
    ranks: RetrievalRanks,
    text_uncertainty: npt.ArrayLike,
    image_uncertainty: npt.ArrayLike | None = None,
    *,
    num_bins: int = 10,
) -> dict[str, dict[str, Any]]:
    """[`confidence_metrics`] of both directions of retrieval, under both conventions for image -> text.

    This is the role without a gallery: how ambiguous is the text?

    Args:
        ranks: from [`rank_both_ways`].
        text_uncertainty (shape `(texts,)`): uncertainty of each caption.
        image_uncertainty (shape `(images,)`, *optional*): uncertainty of each image, where the method has one.
        num_bins (`int`, defaults to 10): number of levels.

    Returns:
        `text_to_image`: captions by their own uncertainty;
        `image_to_text_by_retrieved_caption`: image queries by the uncertainty of the caption that they retrieve
        first, the convention for methods whose texts alone are uncertain;
        `image_to_text_by_image`, where `image_uncertainty` is given: image queries by their own uncertainty.

    Raises:
        ValueError: if a shape disagrees with `ranks`, and as [`confidence_metrics`].
    """
    counts = {"text": len(ranks.text_to_image_rank)}
    counts["image"] = len(ranks.image_queries) + ranks.num_images_without_captions
    text, image = as_array(text_uncertainty), None if image_uncertainty is None else as_array(image_uncertainty)
    for name, values in (("text", text), ("image", image)):
        if values is not None and values.shape != (counts[name],):
            raise ValueError(
                f"`{name}_uncertainty` has shape {values.shape}; it must be ({counts[name]},). Give one value for "
                f"each {name} that was ranked."
            )
    answered = ranks.image_to_text_rank == 0
    retrieved = text[ranks.image_to_text_top]
    metrics = {
        "text_to_image": confidence_metrics(text, ranks.text_to_image_rank == 0, num_bins=num_bins),
        "image_to_text_by_retrieved_caption": confidence_metrics(retrieved, answered, num_bins=num_bins),
    }
    if image is not None:
        own = image[ranks.image_queries]
        metrics["image_to_text_by_image"] = confidence_metrics(own, answered, num_bins=num_bins)
    return metrics


def posterior_metrics(
    posterior: RetrievalPosterior, ranks: RetrievalRanks, *, num_bins: int = 10
) -> dict[str, dict[str, Any]]:
    """The retrieval posterior of the first result as a confidence: is *this* result right?

    Args:
        posterior: from [`retrieval_posterior`].
        ranks: from [`rank_both_ways`], of the same scores.
        num_bins (`int`, defaults to 10): number of levels, and of calibration bins, which hold equal numbers of
            queries as well: where R@1 is low, most posteriors would fall into one bin of equal width.

    Returns:
        `text_to_image` and `image_to_text`, each with [`confidence_metrics`] of 1 - posterior of the first result;
        `negative_log_likelihood`, the mean of `-own_log_probability` in nats; and `calibration`, as
        [`calibration_metrics`] gives it. An image shares its posterior among its own captions: with several of them
        the posterior of the first is too low by construction, and its calibration says little; its order does not
        suffer.

    Raises:
        ValueError: if the numbers of queries disagree, and as [`confidence_metrics`].
    """
    metrics = {}
    for direction, of_queries, rank in (
        ("text_to_image", posterior.text_to_image, ranks.text_to_image_rank),
        ("image_to_text", posterior.image_to_text, ranks.image_to_text_rank),
    ):
        confidence, correct = of_queries.top_probability, rank == 0
        metrics[direction] = {
            **confidence_metrics(1 - confidence, correct, num_bins=num_bins),
            "negative_log_likelihood": float(-of_queries.own_log_probability.mean()),
            "calibration": calibration_metrics(confidence, correct, num_bins=num_bins, strategy="quantile"),
        }
    return metrics


def oracle_metrics(
    ranks: RetrievalRanks, text_to_image_probability: npt.ArrayLike, image_to_text_probability: npt.ArrayLike
) -> dict[str, float]:
    """R@1 against the best possible one, where the world says how probable every pair is, as in generated data.

    Both are expectations over the pairings that the world allows, which leaves out the luck of one draw.

    Args:
        ranks: from [`rank_both_ways`].
        text_to_image_probability (shape `(texts, images)`): probability that the image is the caption's own; rows
            sum to one.
        image_to_text_probability (shape `(texts, images)`): probability that the caption is one of the image's own;
            with one caption an image, columns sum to one.

    Returns:
        For each direction `text_to_image` and `image_to_text`: `{direction}_expected_recall@1`;
        `{direction}_best_recall@1`, that of the most probable answers; `{direction}_oracle_share`, the first over the
        second, ideal 1; and `{direction}_oracle_gap`, the second minus the first, ideal 0.

    Raises:
        ValueError: on shapes that disagree, NaN, or probabilities outside [0, 1].
    """
    shape = len(ranks.text_to_image_rank), len(ranks.image_queries) + ranks.num_images_without_captions
    metrics = {}
    for direction, probabilities in (
        ("text_to_image", as_array(text_to_image_probability)),
        ("image_to_text", as_array(image_to_text_probability)),
    ):
        name = f"{direction}_probability"
        if probabilities.shape != shape or np.isnan(probabilities).any():
            raise ValueError(
                f"`{name}` has shape {probabilities.shape} and {np.count_nonzero(np.isnan(probabilities))} NaN; it "
                f"must be {shape} without NaN, a probability for each caption and image."
            )
        check_probabilities(name, probabilities, "Give the probability of each pair.")
        if direction == "text_to_image":
            expected = probabilities[np.arange(shape[0]), ranks.text_to_image_top].mean()
            best = probabilities.max(axis=1).mean()
        else:
            expected = probabilities[ranks.image_to_text_top, ranks.image_queries].mean()
            best = probabilities[:, ranks.image_queries].max(axis=0).mean()
        metrics[f"{direction}_expected_recall@1"] = float(expected)
        metrics[f"{direction}_best_recall@1"] = float(best)
        metrics[f"{direction}_oracle_share"] = float(expected / best) if best > 0 else float("nan")
        metrics[f"{direction}_oracle_gap"] = float(best - expected)
    return metrics
