"""What a confidence is worth: measured on captions that nothing of it was fitted on, kept with it, and asked first."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch

from ..evaluation import calibration_metrics, confidence_intervals, selective_metrics
from .regression import LogisticRegression


NUM_RESAMPLES = 500
MIN_QUERIES = 20
INTERVAL_BINS = 10


@dataclass(frozen=True)
class MeasuredConfidence:
    """
    The worth of a confidence on held-out queries.

    Attributes:
        auroc (`float`): that a right answer has the higher confidence of a right and a wrong one; chance is 0.5.
        auroc_interval (`tuple[float, float]`): its 95 % bootstrap interval over images.
        aurc (`float`), aurc_interval (`tuple[float, float]`): area under the risk–coverage curve, ideal 0.
        expected_calibration_error (`float`): mean difference between probability and share of right answers.
        num_queries, gallery_size (`int`): what it was measured on.
    """

    auroc: float
    auroc_interval: tuple[float, float]
    aurc: float
    aurc_interval: tuple[float, float]
    expected_calibration_error: float
    num_queries: int
    gallery_size: int

    @classmethod
    def of(cls, score: Any, probability: Any, correct: Any, images: Any, gallery_size: int) -> Self:
        """
        Args:
            score (shape `(queries,)`): the confidence in any unit, higher is more certain.
            probability (shape `(queries,)`): that the answer is right, by a fit that did not see the query.
            correct (shape `(queries,)`): whether it was.
            images (shape `(queries,)`): the image of each query: queries of one image are drawn together.
            gallery_size (`int`): images that were searched.
        """
        values, hits = np.asarray(score, np.float64), np.asarray(correct, np.float64)
        metrics = selective_metrics(-values, hits)
        intervals = confidence_intervals(
            -values, hits, clusters=np.asarray(images), num_bins=None, num_resamples=NUM_RESAMPLES
        )
        error = calibration_metrics(probability, hits, strategy="quantile")["expected_calibration_error"]
        auroc, aurc = ((float(intervals[name][0]), float(intervals[name][1])) for name in ("auroc", "aurc"))
        return cls(metrics["auroc"], auroc, metrics["aurc"], aurc, float(error), len(values), gallery_size)

    @property
    def is_trusted(self) -> bool:
        """Whether the interval of the AUROC lies above chance."""
        return self.auroc_interval[0] > 0.5

    @property
    def reason(self) -> str | None:
        """Why the confidence is not trusted, or `None` if it is."""
        if self.is_trusted:
            return None
        if math.isnan(self.auroc):
            return f"all first results of {self.num_queries} held-out captions were alike, right or wrong"
        low, high = self.auroc_interval
        return (
            f"on {self.num_queries} held-out captions its AUROC is {self.auroc:.2f} [{low:.2f}, {high:.2f}], which is "
            "not certain to be better than chance"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of [`to_dict`]."""
        intervals = {name: tuple(values[name]) for name in ("auroc_interval", "aurc_interval")}
        return cls(**{**values, **intervals})


@dataclass(frozen=True)
class CalibratedConfidence:
    """
    A score of one number that was made a probability on held-out captions.

    Attributes:
        regression (`LogisticRegression`): of the score.
        measured (`MeasuredConfidence`): what it is worth.
        rates (float64, shape `(bins, 4)`): ascending bins of held-out captions: their highest probability, the share
            of right answers, and its 95 % interval (Wilson 1927).
    """

    regression: LogisticRegression
    measured: MeasuredConfidence
    rates: np.ndarray

    @classmethod
    def fit(
        cls,
        score: torch.Tensor,
        correct: torch.Tensor,
        images: torch.Tensor,
        folds: torch.Tensor,
        gallery_size: int,
        *,
        is_log_odds: bool = False,
    ) -> Self:
        """
        Args:
            score (`torch.Tensor` of shape `(queries,)`): higher is more certain; not fitted on these queries.
            correct (`torch.Tensor` of shape `(queries,)`): whether the first result is right.
            images, folds (`torch.LongTensor` of shape `(queries,)`): the image of each query, and its fold.
            gallery_size (`int`): images that were searched.
            is_log_odds (`bool`, *optional*, defaults to `False`): the score is meant as log-odds of a right answer:
                few queries then leave it about as it is.
        """
        prior = LogisticRegression(torch.ones(1, dtype=torch.float64), 0.0) if is_log_odds else None
        inputs, target = score.double()[:, None], correct.double()
        regression = LogisticRegression.fit(inputs, target, prior)
        held_out = LogisticRegression.out_of_fold(inputs, target, folds, prior).numpy()
        measured = MeasuredConfidence.of(score, held_out, correct, images, gallery_size)
        return cls(regression, measured, _rates(regression(inputs).numpy(), target.numpy()))

    def probability(self, score: torch.Tensor) -> np.ndarray:
        """float64 of shape `(queries,)`."""
        return self.regression(score.double()[:, None]).numpy()

    def interval(self, probability: np.ndarray) -> np.ndarray:
        """How often held-out captions of about this probability were right: 95 % intervals, `(queries, 2)`."""
        bins = np.minimum(np.searchsorted(self.rates[:, 0], probability), len(self.rates) - 1)
        return self.rates[bins, 2:]


def _rates(probability: np.ndarray, correct: np.ndarray) -> np.ndarray:
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, max(1, min(INTERVAL_BINS, len(order) // MIN_QUERIES)))
    rows = []
    for members in bins:
        share, count = correct[members].mean(), len(members)
        centre, width = _wilson(share, count)
        rows.append((probability[members].max(), share, max(0.0, centre - width), min(1.0, centre + width)))
    return np.array(rows)


def _wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    scale = 1 + z**2 / count
    return (
        (share + z**2 / (2 * count)) / scale,
        z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale,
    )


def posterior_log_odds(log_posterior: torch.Tensor) -> torch.Tensor:
    """ln p/(1 - p), float64, of log posteriors; those that round to 1 count as 1 - 1e-12."""
    values = log_posterior.double().clamp(max=-1e-12)
    return values - torch.log(-torch.expm1(values))
