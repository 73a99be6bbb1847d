"""A head against its backbone, query by query: what the choice of queries leaves of the difference."""

from functools import partial

import numpy as np
import torch

from ..evaluation import EmbeddingScores, bootstrap_intervals, rank_both_ways, retrieval_posterior
from ..model.modeling_asymvlm import AsymVLMModel
from ..model.objective import pair_scores
from ..store.embedding_store import EmbeddingSplit
from ..training.temperature import ObjectiveOfTemperature, fit_temperature
from .evaluate_model import likelihood_scores


PAIRS_TO_FIT_ON = 4096


@torch.no_grad()
def backbone_scale(validation: EmbeddingSplit) -> float:
    """
    The scale of the backbone's cosine that minimises the validation objective, as the temperature of a head does, of
    the first 4,096 pairs.
    """
    rows = validation.text_image_index[:PAIRS_TO_FIT_ON]
    images = validation.image_features[rows]
    objective = ObjectiveOfTemperature()
    objective.add(pair_scores(validation.text_features[: len(rows)], images, distribution="deterministic"), rows)
    return fit_temperature(objective, start=20.0, smallest_loss=1 / (len(rows) + 1)).logit_scale


@torch.no_grad()
def backbone_differences(
    model: AsymVLMModel, validation: EmbeddingSplit, test: EmbeddingSplit, *, num_resamples: int = 1000
) -> dict[str, list[float]]:
    """
    95 % intervals `[low, high]` of head minus backbone, by a paired bootstrap over images.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        validation (`EmbeddingSplit`): which the scale of the backbone's cosine is fitted on.
        test (`EmbeddingSplit`): the queries and the gallery.
        num_resamples (`int`, *optional*, defaults to 1000): of the bootstrap.

    Returns:
        `text_to_image_recall@1`, `image_to_text_recall@1`, where more is better, and
        `text_to_image_negative_log_likelihood` and `image_to_text_negative_log_likelihood` in nats, where less is.
    """
    cosine = partial(pair_scores, distribution="deterministic")
    head = likelihood_scores(model, test)
    backbone = EmbeddingScores(test.text_features[:], head.image_embeds, cosine)
    index = test.text_image_index
    values: list[dict[str, np.ndarray]] = []
    for scores, scale in ((head, model.logit_scale.item()), (backbone, backbone_scale(validation))):
        ranks = rank_both_ways(scores, index)
        posterior = retrieval_posterior(scores, index, logit_scale=scale)
        values.append(
            {
                "text_to_image_recall@1": ranks.text_to_image_rank == 0,
                "image_to_text_recall@1": ranks.image_to_text_rank == 0,
                "text_to_image_negative_log_likelihood": -posterior.text_to_image.own_log_probability,
                "image_to_text_negative_log_likelihood": -posterior.image_to_text.own_log_probability,
            }
        )
        images = {"text": np.asarray(index), "image": ranks.image_queries}
    return {
        name: bootstrap_intervals(
            np.mean,
            values[0][name].astype(np.float64) - values[1][name],
            clusters=images[name.partition("_")[0]],
            num_resamples=num_resamples,
        )
        for name in values[0]
    }
