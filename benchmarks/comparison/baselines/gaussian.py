"""A diagonal Gaussian for every text and image: the frozen embedding is the mean, the variance is learned."""

import torch
import torch.nn.functional as F
from torch import nn


HIDDEN_SIZE = 512
DROPOUT = 0.3


def perceptron(dim: int, output_bias: float) -> nn.Sequential:
    """One hidden layer of 512, ReLU and dropout 0.3, as in the default head of AsymVLM; starts near a constant."""
    layers = nn.Sequential(nn.Linear(dim, HIDDEN_SIZE), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN_SIZE, dim))
    nn.init.constant_(layers[-1].bias, output_bias)
    return layers


class GaussianHeads(nn.Module):
    """
    Unit-length means and log-variances, `(batch, dim)` each, of texts and images from raw features.

    Args:
        dim (`int`): width of the features.
        initial_log_variance (`float`): bias of the last layer.
    """

    def __init__(self, dim: int, initial_log_variance: float):
        super().__init__()
        self.text = perceptron(dim, initial_log_variance)
        self.image = perceptron(dim, initial_log_variance)

    def forward(
        self, text_features: torch.Tensor, image_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        text_mean, image_mean = F.normalize(text_features, dim=-1), F.normalize(image_features, dim=-1)
        return text_mean, self.text(text_features), image_mean, self.image(image_features)


def divergence_from_standard_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) in nats, mean over the dimensions and the batch: the bottleneck term (VIB)."""
    return (mean.square() + log_variance.exp() - log_variance - 1).mean() / 2
