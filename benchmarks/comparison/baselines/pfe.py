"""PFE: Probabilistic Face Embeddings (Shi and Jain, ICCV 2019), with texts in the place of half of the faces.

The mean is the frozen embedding, the variance a perceptron of the raw features with a softplus. Matching pairs alone
train it, by the mutual likelihood score, which ranks as well. Uncertainty: harmonic mean of the variances.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .gaussian import perceptron
from .protocol import Method, Predictions, by_blocks


MIN_VARIANCE = 1e-6  # far below the 1 / dim of a unit vector: bounds the score where both variances vanish
BLOCK_SIZE = 2  # texts whose differences from all images are held at a time: they should fit the processor's cache


def mutual_likelihood_score(
    first_mean: torch.Tensor, first_variance: torch.Tensor, second_mean: torch.Tensor, second_variance: torch.Tensor
) -> torch.Tensor:
    """
    Log-density of two diagonal Gaussians giving the same point, ln of the integral of their product, in nats: over
    the last dimension, of shapes that broadcast.
    """
    variance = first_variance + second_variance
    terms = (first_mean - second_mean).square() / variance + variance.log() + math.log(2 * math.pi)
    return -terms.sum(dim=-1) / 2


class PFE(Method):
    def __init__(self, dim: int):
        super().__init__()
        # A unit vector's coordinates differ by about 1 / dim in square.
        start = math.log(math.expm1(1 / dim))
        self.heads = nn.ModuleDict({side: perceptron(dim, start) for side in ("text", "image")})

    def encode(self, side: str, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and variances, `(batch, dim)` each."""
        return F.normalize(features, dim=-1), F.softplus(self.heads[side](features)) + MIN_VARIANCE

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        texts, images = self.encode("text", batch["text_features"]), self.encode("image", batch["image_features"])
        return -mutual_likelihood_score(*texts, *images).mean()

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        texts = self.encode("text", split.text_features[:].to(self._device()))
        image_mean, image_variance = self.encode("image", split.image_features[:].to(self._device()))

        def scores(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
            return mutual_likelihood_score(mean[:, None], variance[:, None], image_mean, image_variance)

        return Predictions(
            scores=by_blocks(scores, texts, BLOCK_SIZE),
            logit_scale=1.0,
            text_uncertainty={"variance": 1 / (1 / texts[1]).mean(dim=-1).cpu()},
            image_uncertainty={"variance": 1 / (1 / image_variance).mean(dim=-1).cpu()},
        )
