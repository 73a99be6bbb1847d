"""ProLIP: Probabilistic Language-Image Pre-Training (Chun et al., ICLR 2025), its head on frozen features.

The mean is the frozen embedding. scale (mu_1'mu_2 - tr(Sigma_1 + Sigma_2) / 2) + bias, both learned, is the logit of a
match in a pairwise sigmoid loss; to it come the inclusion of the image in the text, weighted 1e-7, and the bottleneck
term, weighted 1e-4. The log-variance starts at -10, as in the public code. The inclusion of an input in a masked copy
of itself needs the encoders and is left out. Uncertainty: trace of the covariance.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .gaussian import GaussianHeads, divergence_from_standard_normal
from .protocol import Method, Predictions, matching_pairs


INCLUSION_WEIGHT = 1e-7
INCLUSION_SCALE = 1000.0
# The inclusion is computed with the variances times exp(10), as in the public code, which keeps it of order one.
INCLUSION_LOG_VARIANCE_SHIFT = 10.0
BOTTLENECK_WEIGHT = 1e-4
INITIAL_LOG_VARIANCE = -10.0
INITIAL_LOGIT_SCALE, INITIAL_LOGIT_BIAS = 10.0, -10.0


def pairwise_scores(
    text_mean: torch.Tensor,
    text_log_variance: torch.Tensor,
    image_mean: torch.Tensor,
    image_log_variance: torch.Tensor,
) -> torch.Tensor:
    """mu_1'mu_2 - tr(Sigma_1 + Sigma_2) / 2 of every text and every image, `(texts, images)`."""
    traces = text_log_variance.exp().sum(-1)[:, None] + image_log_variance.exp().sum(-1)
    return text_mean @ image_mean.T - traces / 2


def pairwise_sigmoid_loss(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Sum over all pairs of -ln sigmoid(± logit), + for matches, divided by the number of texts."""
    signs = 2 * matches.to(logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def log_inclusion(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """
    ln of the integral of p² q, of one-dimensional Gaussians p and q, in nats, elementwise: high where p lies within q.
    """
    # p² is N(mean, variance / 2) / (2 sqrt(pi variance)); the product with q integrates to a Gaussian of the means.
    variance = log_variance.exp() / 2 + other_log_variance.exp()
    overlap = -((mean - other_mean).square() / variance + variance.log() + math.log(2 * math.pi)) / 2
    return overlap - (math.log(4 * math.pi) + log_variance) / 2


def inclusion_loss(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """Mean of -ln sigmoid(1000 (H(first in second) - H(second in first))) over dimensions and pairs."""
    first = mean, log_variance + INCLUSION_LOG_VARIANCE_SHIFT
    second = other_mean, other_log_variance + INCLUSION_LOG_VARIANCE_SHIFT
    return -F.logsigmoid(INCLUSION_SCALE * (log_inclusion(*first, *second) - log_inclusion(*second, *first))).mean()


class ProLIP(Method):
    def __init__(self, dim: int):
        super().__init__()
        self.heads = GaussianHeads(dim, INITIAL_LOG_VARIANCE)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_LOGIT_SCALE)))
        self.logit_bias = nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        text_mean, text_log_variance, image_mean, image_log_variance = self.heads(
            batch["text_features"], batch["image_features"]
        )
        scores = pairwise_scores(text_mean, text_log_variance, image_mean, image_log_variance)
        logits = self.log_logit_scale.exp() * scores + self.logit_bias
        loss = pairwise_sigmoid_loss(logits, matching_pairs(batch["image_ids"]))
        inclusion = inclusion_loss(image_mean, image_log_variance, text_mean, text_log_variance)
        bottleneck = divergence_from_standard_normal(text_mean, text_log_variance)
        bottleneck = bottleneck + divergence_from_standard_normal(image_mean, image_log_variance)
        return loss + INCLUSION_WEIGHT * inclusion + BOTTLENECK_WEIGHT * bottleneck

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        features = split.text_features[:].to(self._device()), split.image_features[:].to(self._device())
        text_mean, text_log_variance, image_mean, image_log_variance = self.heads(*features)
        return Predictions(
            scores=pairwise_scores(text_mean, text_log_variance, image_mean, image_log_variance).cpu(),
            logit_scale=self.log_logit_scale.exp().item(),
            text_uncertainty={"trace of the covariance": text_log_variance.exp().sum(dim=-1).cpu()},
            image_uncertainty={"trace of the covariance": image_log_variance.exp().sum(dim=-1).cpu()},
        )
