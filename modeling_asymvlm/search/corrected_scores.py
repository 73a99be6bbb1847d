"""Text -> image scores with the evidence correction, for exact search.

    s(t, z) = sigma (tau delta(t, z) - beta e(z))

is, for the von Mises–Fisher distribution and the cosine, an inner product of `[z, e]` with a vector of the text, up to
a constant of the text. For the Power Spherical distribution it is bounded by one: ln(1 + c) lies below its tangent at
every `c0 > -1`, so that with a' = sigma tau kappa

    s  <=  <[z, e], [a' mu/(1 + c0), -sigma beta]> + a' (ln(1 + c0) - c0/(1 + c0)) + sigma tau G(kappa),

with equality where mu'z = c0 (see [`power_spherical_bound`], where the rounding of float32 products is derived). The
evidence is that which the index keeps, in float32; keys are exact for it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..calibration.calibration import Calibration
from ..calibration.evidence import EvidenceCorrection
from ..model.objective import Likelihood
from .power_spherical_bound import MIN_TANGENT, UNIT_ROUNDOFF, relative_rounding


# Where a cosine is below this, a score is bounded by that of this cosine, instead of by its rounding.
LOW_COSINE = -0.5
ROUNDED_OPERATIONS = 16


def check_settings(calibration: Calibration, law: Likelihood, logit_scale: float) -> None:
    """Raises `ValueError` if an index of this likelihood and temperature is not one of the calibration's head."""
    head = calibration.model
    wanted, tau = head.config.law, head.logit_scale.item()
    if law != wanted or not math.isclose(logit_scale, tau, rel_tol=1e-6):
        raise ValueError(
            f"The index has distribution={law.distribution!r}, normalizer={law.normalizer!r} and "
            f"logit_scale={logit_scale:.7g}, but the calibration is of a head with {wanted.distribution!r}, "
            f"{wanted.normalizer!r} and {tau:.7g}: pass those, or build the index with from_split."
        )


@dataclass(frozen=True)
class CorrectedScores:
    """
    Args:
        law (`Likelihood`): of the model.
        logit_scale (`float`): tau.
        correction (`EvidenceCorrection`): sigma and beta.
    """

    law: Likelihood
    logit_scale: float
    correction: EvidenceCorrection

    def of_cosines(self, cosines: torch.Tensor, text_embeds: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
        """
        Scores in the dtype of the cosines.

        Args:
            cosines (`torch.Tensor` of shape `(texts, images)`): of mean directions and images.
            text_embeds (`torch.DoubleTensor` of shape `(texts, dim)`): natural parameters.
            evidence (`torch.Tensor` of shape `(images,)` or `(texts, images)`): of the images.
        """
        kappa, log_normalizer = self._parameters(text_embeds)
        delta = self.law.scores_of_cosines(
            cosines, kappa[:, None].to(cosines.dtype), log_normalizer[:, None].to(cosines.dtype)
        )
        return self.correction.apply(self.logit_scale * delta, evidence)

    def query_vectors(
        self, text_embeds: torch.Tensor, tangents: torch.Tensor, largest_evidence: float
    ) -> tuple[torch.Tensor, np.ndarray]:
        """
        Vectors for inner products with `[z, e]`, and what is to be added to these for a bound on the score.

        Args:
            text_embeds (`torch.DoubleTensor` of shape `(texts, dim)`): natural parameters.
            tangents (`torch.DoubleTensor` of shape `(texts,)`): cosines where Power Spherical bounds touch.
            largest_evidence (`float`): of the images, by absolute value.

        Returns:
            float32 of shape `(texts, dim + 1)`, and float64 of shape `(texts,)`, which holds the rounding of float32.
        """
        log_normalizer = self._parameters(text_embeds)[1]
        sigma, beta, tau = self.correction.sigma, self.correction.beta, self.logit_scale
        weight = self._weights(text_embeds)
        constant = sigma * tau * log_normalizer
        if not self.law.is_linear:
            touching = tangents.clamp(min=MIN_TANGENT)
            constant = constant + weight * (torch.log1p(touching) - touching / (1 + touching))
            weight = weight / (1 + touching)
        directions = F.normalize(text_embeds, dim=-1) * weight[:, None]
        column = torch.full_like(weight, -sigma * beta)[:, None]
        size = weight + sigma * beta * largest_evidence
        rounding = relative_rounding(text_embeds.shape[1] + 1) * size + ROUNDED_OPERATIONS * UNIT_ROUNDOFF * size
        return torch.cat([directions, column], dim=1).float(), (constant + rounding).numpy()

    def touching(self, text_embeds: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Tangents that Power Spherical [`query_vectors`] were made with, as the lengths of their directions tell."""
        lengths = torch.linalg.vector_norm(vectors[:, : text_embeds.shape[1]], dim=-1)
        weight = self._weights(text_embeds)
        return torch.where(lengths > 0, weight / lengths - 1, 0)

    def scan_bounds(
        self, smallest: np.ndarray, text_embeds: torch.Tensor, lowest_evidence: float, largest_evidence: float
    ) -> np.ndarray:
        """
        What no score exceeds whose float32 value is at most `smallest`, all of shape `(texts,)`.

        Args:
            smallest (float64): float32 scores.
            text_embeds (`torch.DoubleTensor` of shape `(texts, dim)`): natural parameters.
            lowest_evidence, largest_evidence (`float`): the least of all images, and the largest absolute value.
        """
        log_normalizer = self._parameters(text_embeds)[1].numpy()
        sigma, beta, tau = self.correction.sigma, self.correction.beta, self.logit_scale
        weight = self._weights(text_embeds).numpy()
        size = weight + sigma * (tau * np.abs(log_normalizer) + beta * largest_evidence)
        slope = 1.0 if self.law.is_linear else 1 / (1 + LOW_COSINE)
        rounding = slope * weight * relative_rounding(text_embeds.shape[1])
        rounding += ROUNDED_OPERATIONS * UNIT_ROUNDOFF * (size + np.abs(smallest))
        if self.law.is_linear:
            return smallest + rounding
        low = weight * np.log1p(LOW_COSINE) + sigma * (tau * log_normalizer - beta * lowest_evidence)
        return np.maximum(smallest, low) + rounding

    def _parameters(self, text_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kappa = torch.linalg.vector_norm(text_embeds.double(), dim=-1)
        return kappa, self.law.log_normalizer(kappa, text_embeds.shape[1])

    def _weights(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """sigma tau kappa, the slope of the scores of texts at a cosine of 0; sigma tau without a concentration."""
        kappa = torch.linalg.vector_norm(text_embeds.double(), dim=-1)
        kappa = kappa if self.law.has_concentration else torch.ones_like(kappa)
        return self.correction.sigma * self.logit_scale * kappa
