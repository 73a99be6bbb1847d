"""PCME++: Improved Probabilistic Image-Text Representations (Chun, ICLR 2024), its head on frozen features.

The mean is the frozen embedding. The closed-form sampled distance ‖mu_1 - mu_2‖² + tr(Sigma_1 + Sigma_2), with a
learned scale and shift, both from 5, is the logit of a match, trained by binary cross-entropy; to it come the same on
pseudo-positives, weighted 0.1, and the bottleneck term, weighted 1e-4. The log-variance starts at -4, as in the public
code. Captions of one image match it alike; a pseudo-positive scores no lower than the first of them in the batch, as
in the public code. Uncertainty: trace of the covariance.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .gaussian import GaussianHeads, divergence_from_standard_normal
from .protocol import Method, Predictions, matching_pairs


BOTTLENECK_WEIGHT = 1e-4
INITIAL_LOG_VARIANCE = -4.0


def closed_form_sampled_distance(
    text_mean: torch.Tensor,
    text_log_variance: torch.Tensor,
    image_mean: torch.Tensor,
    image_log_variance: torch.Tensor,
) -> torch.Tensor:
    """Expected squared distance of samples of every text and every image, `(texts, images)`."""
    squares = text_mean.square().sum(-1)[:, None] + image_mean.square().sum(-1) - 2 * text_mean @ image_mean.T
    return squares + text_log_variance.exp().sum(-1)[:, None] + image_log_variance.exp().sum(-1)


def with_pseudo_positives(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Marks as matches also the candidates that a row scores no lower than the first of its matches."""
    first = matches.byte().argmax(dim=1, keepdim=True)
    return matches | (logits >= logits.gather(1, first))


class PCMEPlusPlus(Method):
    """
    Args:
        dim (`int`): width of the features.
        pseudo_positive_weight (`float`, *optional*, defaults to 0.1): 0 leaves the pseudo-positives out.
    """

    def __init__(self, dim: int, pseudo_positive_weight: float = 0.1):
        super().__init__()
        self.pseudo_positive_weight = pseudo_positive_weight
        self.heads = GaussianHeads(dim, INITIAL_LOG_VARIANCE)
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.shift = nn.Parameter(torch.tensor(5.0))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        text_mean, text_log_variance, image_mean, image_log_variance = self.heads(
            batch["text_features"], batch["image_features"]
        )
        distance = closed_form_sampled_distance(text_mean, text_log_variance, image_mean, image_log_variance)
        logits = self.shift - self.scale * distance
        matches = matching_pairs(batch["image_ids"])
        text_to_image = with_pseudo_positives(logits.detach(), matches)
        image_to_text = with_pseudo_positives(logits.detach().T, matches.T).T
        # Two losses of the matches and two of the pseudo-positives, in one: cross-entropy is linear in its target.
        weight = self.pseudo_positive_weight
        matched, *pseudo = (each.to(logits.dtype) for each in (matches, text_to_image, image_to_text))
        target = (2 * matched + weight * sum(pseudo)) / (2 + 2 * weight)
        loss = (2 + 2 * weight) * F.binary_cross_entropy_with_logits(logits, target)
        bottleneck = divergence_from_standard_normal(text_mean, text_log_variance)
        bottleneck = bottleneck + divergence_from_standard_normal(image_mean, image_log_variance)
        return loss + BOTTLENECK_WEIGHT * bottleneck

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        features = split.text_features[:].to(self._device()), split.image_features[:].to(self._device())
        text_mean, text_log_variance, image_mean, image_log_variance = self.heads(*features)
        distance = closed_form_sampled_distance(text_mean, text_log_variance, image_mean, image_log_variance)
        return Predictions(
            scores=-distance.cpu(),
            logit_scale=self.scale.item(),
            text_uncertainty={"trace of the covariance": text_log_variance.exp().sum(dim=-1).cpu()},
            image_uncertainty={"trace of the covariance": image_log_variance.exp().sum(dim=-1).cpu()},
        )
