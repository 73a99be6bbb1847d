"""The scores that a model ships with: likelihoods, text -> image with the evidence correction of its calibration."""

from typing import Any

import torch

from ..calibration.calibration import Calibration
from ..evaluation import EmbeddingScores
from ..model.modeling_asymvlm import AsymVLMModel
from ..store.embedding_store import EmbeddingSplit


@torch.no_grad()
def likelihood_scores(model: AsymVLMModel, split: EmbeddingSplit, *, batch_size: int = 4096) -> EmbeddingScores:
    """
    The log-likelihood ratio, in nats against the uniform density, of every image of a split under every caption; for a
    deterministic model the cosine.

    Args:
        model (`AsymVLMModel`): in evaluation mode, on any device.
        split (`EmbeddingSplit`): cached features.
        batch_size (`int`, *optional*, defaults to 4096): texts at a time.

    Returns:
        Scores of shape `(captions, images)`; their `text_embeds` and `image_embeds` are the model's, on its device.
    """
    texts = split.text_features
    text_embeds = torch.cat(
        [
            model(text_features=texts[start : start + batch_size].to(model.device), return_dict=True).text_embeds
            for start in range(0, len(texts), batch_size)
        ]
    )
    image_embeds = model(image_features=split.image_features[:].to(model.device), return_dict=True).image_embeds
    return EmbeddingScores(text_embeds, image_embeds, model.config.law.scores)


def corrected_scores(scores: EmbeddingScores, model: AsymVLMModel, calibration: Calibration) -> EmbeddingScores:
    """
    The corrected scores text -> image, in nats, whose softmax over the images is the posterior.

    Args:
        scores (`EmbeddingScores`): of [`likelihood_scores`].
        model (`AsymVLMModel`): whose they are.
        calibration (`Calibration`): of its head.
    """
    images = scores.image_embeds
    evidence = calibration.evidence(images).to(images.device, images.dtype)
    law, tau, correction = model.config.law, model.logit_scale.item(), calibration.correction

    def score(texts: Any, images_with_evidence: Any) -> torch.Tensor:
        logits = tau * law.scores(texts, images_with_evidence[:, :-1])
        return correction.apply(logits, images_with_evidence[:, -1])

    return EmbeddingScores(scores.text_embeds, torch.cat([images, evidence[:, None]], dim=1), score)
