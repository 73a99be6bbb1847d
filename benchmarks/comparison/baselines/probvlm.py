"""ProbVLM: Probabilistic Adapter for Frozen Vision-Language Models (Upadhyay et al., ICCV 2023).

A generalised Gaussian for every coordinate of a frozen embedding: an adapter for each modality reconstructs the mean
and gives 1/alpha and beta, trained by L1 + 0.05 times the negative log-likelihood of the own modality and, weighted
1e-4, of the other. Uncertainty: alpha² Gamma(3/beta) / Gamma(1/beta), averaged over Monte Carlo dropout, plus the
variance of the mean over it, averaged over the coordinates. The public evaluation takes the inverse of a text's
uncertainty, but not of an image's: both signs are reported. Retrieval is that of the frozen embeddings.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .protocol import Method, Predictions


HIDDEN_SIZE = 256
DROPOUT = 0.1
NUM_PASSES = 15
L1_WEIGHT, LIKELIHOOD_WEIGHT, CROSS_MODAL_WEIGHT = 1.0, 5e-2, 1e-4

# Bounds on 1/alpha and beta: Gamma(3 / beta), and with it the variance, overflows float32 below beta = 0.086.
MIN_INVERSE_ALPHA, MIN_BETA = 1e-3, 0.2
MIN_RESIDUAL = 1e-4  # in units of alpha, as in the public code: the slope of |x|^beta is unbounded at 0 for beta < 1


def negative_log_likelihood(
    mean: torch.Tensor, inverse_alpha: torch.Tensor, beta: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """-ln of beta / (2 alpha Gamma(1/beta)) exp(-(|target - mean| / alpha)^beta), elementwise, in nats."""
    residual = ((target - mean).abs() * inverse_alpha).clamp(min=MIN_RESIDUAL)
    return residual.pow(beta) - inverse_alpha.log() - beta.log() + torch.lgamma(1 / beta) + math.log(2)


def variance(inverse_alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """alpha² Gamma(3/beta) / Gamma(1/beta), elementwise."""
    return torch.exp(torch.lgamma(3 / beta) - torch.lgamma(1 / beta)) / inverse_alpha.square()


class Adapter(nn.Module):
    """Unit-length embeddings to mean, 1/alpha and beta, `(batch, dim)` each."""

    def __init__(self, dim: int):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(dim, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN_SIZE, dim),
        )
        self.mean, self.inverse_alpha, self.beta = (
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)) for _ in range(3)
        )

    def forward(self, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.trunk(embeds) + embeds
        return (
            self.mean(hidden),
            F.softplus(self.inverse_alpha(hidden)) + MIN_INVERSE_ALPHA,
            F.softplus(self.beta(hidden)) + MIN_BETA,
        )


class ProbVLM(Method):
    def __init__(self, dim: int):
        super().__init__()
        self.adapters = nn.ModuleDict({side: Adapter(dim) for side in ("text", "image")})

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        embeds = {side: F.normalize(batch[f"{side}_features"], dim=-1) for side in ("text", "image")}
        total = torch.zeros((), device=self._device())
        for side, other in (("text", "image"), ("image", "text")):
            law = self.adapters[side](embeds[side])
            for target, weight in ((embeds[side], 1.0), (embeds[other], CROSS_MODAL_WEIGHT)):
                likelihood = negative_log_likelihood(*law, target).mean()
                total = total + weight * (L1_WEIGHT * F.l1_loss(law[0], target) + LIKELIHOOD_WEIGHT * likelihood)
        return total

    def uncertainty(self, side: str, features: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Aleatoric and epistemic variance of each embedding, mean over the coordinates: `(batch,)`."""
        adapter, embeds = self.adapters[side], F.normalize(features, dim=-1)
        adapter.train()  # dropout is all that differs
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            passes = [adapter(embeds) for _ in range(NUM_PASSES)]
        adapter.eval()
        aleatoric = torch.stack([variance(inverse_alpha, beta) for _, inverse_alpha, beta in passes]).mean(dim=0)
        epistemic = torch.stack([mean for mean, _, _ in passes]).var(dim=0)
        return (aleatoric + epistemic).mean(dim=-1).cpu()

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        features = {"text": split.text_features[:], "image": split.image_features[:]}
        scores = F.normalize(features["text"], dim=-1) @ F.normalize(features["image"], dim=-1).T
        uncertainty = {side: self.uncertainty(side, features[side].to(self._device())) for side in features}
        return Predictions(
            scores=scores,
            text_uncertainty={"variance": uncertainty["text"], "inverse variance": 1 / uncertainty["text"]},
            image_uncertainty={"variance": uncertainty["image"], "inverse variance": 1 / uncertainty["image"]},
        )
