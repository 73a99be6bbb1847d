"""Is a text like those that the head has seen? A Mahalanobis distance of unit text features (Lee et al., "A Simple
Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018), read as a rank among held-out captions."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F


RIDGE = 1e-4  # added to the covariance, in units of squared cosine
MAX_QUANTILES = 10_001
UNLIKE = 0.05  # a text of a lower p-value is unlike the training captions, which is said before any other number


@dataclass(frozen=True)
class Typicality:
    """
    How far a text lies from the training captions, and how far held-out captions do.

    Attributes:
        mean (`torch.FloatTensor` of shape `(dim,)`): of the unit features of training captions.
        whitening (`torch.FloatTensor` of shape `(dim, dim)`): maps a difference to one whose squared length is the
            distance.
        distances (`torch.FloatTensor` of shape `(held_out,)`): of held-out captions, ascending; all of them, or 10,001
            at evenly spaced ranks.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    distances: torch.Tensor

    @classmethod
    def fit(cls, training: torch.Tensor, held_out: torch.Tensor) -> Self:
        """
        Args:
            training (`torch.Tensor` of shape `(captions, dim)`): text features of training captions, of any length.
            held_out (`torch.Tensor` of shape `(captions, dim)`): those of captions that the head was not trained on.
        """
        units = F.normalize(training.double(), dim=-1)
        mean = units.mean(dim=0)
        centred = units - mean
        covariance = centred.T @ centred / len(units) + RIDGE * torch.eye(units.shape[1], dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(mean), dtype=torch.float64)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        fitted = cls(mean.float(), whitening.float(), torch.empty(0))
        ascending = fitted.distance(held_out).sort().values
        ranks = torch.linspace(0, len(ascending) - 1, min(len(ascending), MAX_QUANTILES)).round().long()
        return cls(fitted.mean, fitted.whitening, ascending[ranks])

    def distance(self, text_features: torch.Tensor) -> torch.Tensor:
        """Squared Mahalanobis distances, float32 of shape `(texts,)`, of text features of any length."""
        units = F.normalize(text_features.float(), dim=-1)
        return ((units - self.mean) @ self.whitening.T).square().sum(dim=-1)

    def p_value(self, text_features: torch.Tensor) -> torch.Tensor:
        """
        The share of held-out captions, the text itself counted among them, that lie as far away or farther: float64 of
        shape `(texts,)`, in (0, 1]. Of captions like the held-out ones, a share of at most p has a value of at most p.
        """
        count = len(self.distances)
        farther = count - torch.searchsorted(self.distances, self.distance(text_features).contiguous())
        return (1.0 + farther.double()) / (1.0 + count)
