"""Ridge and logistic regression whose penalties are chosen out of fold, over images, so that nothing is judged by what
it was fitted on (Hoerl & Kennard 1970; Hastie, Tibshirani & Friedman 2009, sections 3.4.1 and 4.4)."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F


# Penalties that are tried, as multiples of the mean variance of the features.
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-8, 7))
NUM_FOLDS = 5
MAX_STEPS = 100


@dataclass(frozen=True)
class RidgeRegression:
    """
    A linear prediction.

    Attributes:
        weights (`torch.DoubleTensor` of shape `(features,)`), intercept (`float`): `inputs @ weights + intercept`.
    """

    weights: torch.Tensor
    intercept: float

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Predictions, float64 of shape `(rows,)`, for inputs of shape `(rows, features)`."""
        return inputs.double() @ self.weights + self.intercept


class OutOfFold(NamedTuple):
    """A regression on all rows, and what those of the other folds predict for each row, `(rows,)`."""

    regression: RidgeRegression
    predictions: torch.Tensor


def fit_ridge(inputs: torch.Tensor, target: torch.Tensor, folds: torch.Tensor) -> OutOfFold:
    """
    Ridge regression with the penalty of least squared error out of fold.

    Args:
        inputs (`torch.Tensor` of shape `(rows, features)`): any number of rows of at least two folds.
        target (`torch.Tensor` of shape `(rows,)`): what to predict.
        folds (`torch.LongTensor` of shape `(rows,)`): rows of one image share a fold.
    """
    inputs, target = inputs.double(), target.double()
    predictions = torch.empty(len(PENALTIES), len(target), dtype=torch.float64)
    for fold in folds.unique():
        own = folds == fold
        for number, regression in enumerate(_path(inputs[~own], target[~own])):
            predictions[number, own] = regression(inputs[own])
    best = int((predictions - target).square().mean(dim=1).argmin())
    return OutOfFold(_path(inputs, target)[best], predictions[best])


def _path(inputs: torch.Tensor, target: torch.Tensor) -> list[RidgeRegression]:
    """Regressions with each of `PENALTIES`, from one eigendecomposition."""
    mean, target_mean = inputs.mean(dim=0), target.mean()
    centred = inputs - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(inputs))
    projected = vectors.T @ (centred.T @ (target - target_mean) / len(inputs))
    scale = values.clamp(min=0).mean().clamp(min=torch.finfo(torch.float64).tiny)
    regressions = []
    for penalty in PENALTIES:
        weights = vectors @ (projected / (values.clamp(min=0) + penalty * scale))
        regressions.append(RidgeRegression(weights, float(target_mean - mean @ weights)))
    return regressions


@dataclass(frozen=True)
class LogisticRegression:
    """
    A probability.

    Attributes:
        weights (`torch.DoubleTensor` of shape `(features,)`), intercept (`float`): of the log-odds.
    """

    weights: torch.Tensor
    intercept: float

    def log_odds(self, inputs: torch.Tensor) -> torch.Tensor:
        """float64 of shape `(rows,)`, for inputs of shape `(rows, features)`."""
        return inputs.double() @ self.weights + self.intercept

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Probabilities, float64 of shape `(rows,)`."""
        return self.log_odds(inputs).sigmoid()

    @classmethod
    def fit(cls, inputs: torch.Tensor, target: torch.Tensor, prior: Self | None = None) -> Self:
        """
        The most probable regression by Newton's method on standardised inputs. Its prior is normal of variance 1
        around that of no effect, which keeps separable data finite, with any base rate, or around a given one.

        Args:
            inputs (`torch.Tensor` of shape `(rows, features)`).
            target (`torch.Tensor` of shape `(rows,)`): 0, 1 or a share.
            prior (`LogisticRegression`, *optional*): what is believed before any row is seen.
        """
        inputs, target = inputs.double(), target.double()
        mean, deviation = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        design = torch.cat([torch.ones(len(inputs), 1, dtype=torch.float64), (inputs - mean) / deviation], dim=1)
        penalty = torch.ones(design.shape[1], dtype=torch.float64)
        if prior is None:
            penalty[0] = 1e-3
            centre = torch.zeros(design.shape[1], dtype=torch.float64)
        else:
            centre = torch.cat([prior.log_odds(mean[None]), prior.weights * deviation])

        def loss(point: torch.Tensor) -> torch.Tensor:
            log_odds, distance = design @ point, point - centre
            return (F.softplus(log_odds) - target * log_odds).sum() + (penalty * distance).dot(distance) / 2

        point = torch.zeros(design.shape[1], dtype=torch.float64)
        for _ in range(MAX_STEPS):
            probability = (design @ point).sigmoid()
            gradient = design.T @ (probability - target) + penalty * (point - centre)
            curvature = (design.T * (probability * (1 - probability))) @ design + penalty.diag()
            step = torch.linalg.solve(curvature, gradient)
            here = loss(point)
            while step.abs().max() >= 1e-10 and not loss(point - step) <= here:
                step = step / 2
            point = point - step
            if step.abs().max() < 1e-10:
                break
        weights = point[1:] / deviation
        return cls(weights, float(point[0] - mean @ weights))

    @classmethod
    def out_of_fold(
        cls, inputs: torch.Tensor, target: torch.Tensor, folds: torch.Tensor, prior: Self | None = None
    ) -> torch.Tensor:
        """What fits on the other folds say of each row: probabilities, float64 of shape `(rows,)`."""
        probabilities = torch.empty(len(target), dtype=torch.float64)
        for fold in folds.unique():
            own = folds == fold
            probabilities[own] = cls.fit(inputs[~own], target[~own], prior)(inputs[own])
        return probabilities
