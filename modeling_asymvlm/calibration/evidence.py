"""The evidence correction of text -> image retrieval: images that every text likes are worth less.

With a = tau, delta the log-likelihood of an image under a text, and T reference texts,

    e(z)    = ln (1/|T|) sum_{t' in T} exp(a delta(t', z))            the evidence of an image, in nats
    s(t, z) = sigma (a delta(t, z) - beta e(z))                       the corrected score

is the pointwise mutual information ln p(z|t)/p(z) for sigma = beta = 1; a query bank in the manner of Bogolin et al.,
"Cross Modal Retrieval with Querybank Normalisation" (CVPR 2022), with the model's own likelihood as logit. sigma and
beta are those of least negative log-likelihood of held-out captions over their gallery, and of half a caption more
that fits any image alike; beta = 0 leaves the ranking.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F


# delta of every text with every image, (texts, images), from natural parameters and image vectors.
PairScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

TILE_TEXTS, TILE_IMAGES = 1024, 2048
NUM_FOLDS = 5
MAX_QUERIES = 4096  # captions that sigma and beta are fitted on
# As if half a caption more were held out, of any image alike: captions that all find their own image would call for a
# posterior without doubt, which the next caption refutes.
PSEUDO_CAPTIONS = 0.5
TOLERATED_FACTOR = 2.0  # of a temperature from the fitted one
TILE_CAPTIONS = 64
MOST_STEPS = 50  # of Newton's method
LARGEST_SCALE = 1e4  # of sigma, where every caption finds its own image


@torch.no_grad()
def log_evidence(
    scores: PairScores, logit_scale: float, text_embeds: torch.Tensor, image_embeds: torch.Tensor
) -> torch.Tensor:
    """
    ln of the mean likelihood of images under reference texts, to the power tau; one pass in tiles.

    Args:
        scores (`Callable`): delta, as [`pair_scores`] of a law.
        logit_scale (`float`): tau.
        text_embeds (`torch.Tensor` of shape `(references, dim)`): natural parameters.
        image_embeds (`torch.Tensor` of shape `(images, dim)`): of any non-zero length.

    Returns:
        `torch.DoubleTensor` of shape `(images,)`, in nats.
    """
    parts = []
    for images in image_embeds.split(TILE_IMAGES):
        peak = total = torch.zeros(len(images), dtype=torch.float64)
        for number, texts in enumerate(text_embeds.split(TILE_TEXTS)):
            logits = scores(texts, images)  # (texts, images)
            if number == 0:
                peak = (logit_scale * logits.amax(dim=0)).double()
            shift = -peak.to(logits.dtype)
            likelihood = torch.add(shift, logits, alpha=logit_scale, out=logits).exp_().sum(dim=0)
            if not likelihood.isfinite().all():  # a later tile is far above the first
                logits = scores(texts, images).mul_(logit_scale)
                new_peak = torch.maximum(peak, logits.amax(dim=0).double())
                total, peak = total * (peak - new_peak).exp(), new_peak
                likelihood = logits.sub_(peak.to(logits.dtype)).exp_().sum(dim=0)
            total = total + likelihood.double()
        parts.append(peak + total.log())
    return torch.cat(parts) - math.log(len(text_embeds))


@dataclass(frozen=True)
class EvidenceCorrection:
    """
    What turns likelihoods into corrected scores; see the top of this module.

    Attributes:
        sigma (`float`): inverse temperature of the corrected score, > 0.
        beta (`float`): weight of the evidence; 0 leaves the ranking as it was.
        sharpening (`float`, *optional*, defaults to 1): multiple of tau at which the evidence is taken.
    """

    sigma: float
    beta: float
    sharpening: float = 1.0

    @classmethod
    def fit(
        cls, logits: torch.Tensor, evidence: torch.Tensor, text_image_index: torch.Tensor, *, seed: int = 0
    ) -> Self:
        """
        sigma and beta of least negative log-likelihood, beta only where it wins on captions that it was not fitted on.

        Args:
            logits (`torch.Tensor` of shape `(captions, images)`): tau delta of held-out captions with their gallery.
            evidence (`torch.Tensor` of shape `(images,)`): of [`log_evidence`].
            text_image_index (`torch.LongTensor` of shape `(captions,)`): the image of each caption.
            seed (`int`, *optional*, defaults to 0): of the folds, which are over images.
        """
        folds = folds_of_images(text_image_index, NUM_FOLDS, seed)
        both = [_minimise(logits, evidence, text_image_index, with_evidence) for with_evidence in (False, True)]
        gain = 0.0
        for fold in range(NUM_FOLDS):
            rest, own = folds != fold, folds == fold
            if not own.any() or not rest.any():
                continue
            plain, corrected = (
                cls(*_minimise(logits[rest], evidence, text_image_index[rest], with_evidence, both[with_evidence]))
                for with_evidence in (False, True)
            )
            losses = [
                F.cross_entropy(each.apply(logits[own], evidence), text_image_index[own], reduction="sum").item()
                for each in (plain, corrected)
            ]
            gain += losses[0] - losses[1]
        return cls(*both[gain > 0])

    @classmethod
    def fit_at_own_temperature(
        cls,
        logits: torch.Tensor,
        evidence_at: Callable[[float], torch.Tensor],
        text_image_index: torch.Tensor,
        *,
        seed: int = 0,
    ) -> tuple[Self, torch.Tensor]:
        """
        [`fit`] for logits of any temperature: where they are off by more than a factor of two, as those of a model
        without training are, the evidence is taken at the temperature that fits held-out captions.

        Args:
            logits, text_image_index, seed: as for [`fit`].
            evidence_at (`Callable`): the evidence of the images at a multiple of tau, `(images,)`.

        Returns:
            The correction, and the evidence that it was fitted with.
        """
        fitted = cls.fit_scale(logits, text_image_index)
        sharpening = 1.0 if 1 / TOLERATED_FACTOR <= fitted <= TOLERATED_FACTOR else fitted
        evidence = evidence_at(sharpening)
        found = cls.fit(sharpening * logits, evidence, text_image_index, seed=seed)
        return cls(found.sigma * sharpening, found.beta / sharpening, sharpening), evidence

    @staticmethod
    def fit_scale(scores: torch.Tensor, text_image_index: torch.Tensor) -> float:
        """The inverse temperature of least negative log-likelihood of scores, `(captions, images)`."""
        start = 1 / float(scores.double().std().clamp(min=1e-12))
        return start * _minimise(start * scores, scores.new_zeros(scores.shape[1]), text_image_index, False)[0]

    def apply(self, logits: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
        """Corrected scores, `(captions, images)`, of tau delta and the evidence of the images."""
        return self.sigma * (logits - self.beta * evidence.to(logits.dtype))


def folds_of_images(text_image_index: torch.Tensor, num_folds: int, seed: int) -> torch.Tensor:
    """The fold of each caption, `(captions,)`: captions of an image share one."""
    num_images = int(text_image_index.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(num_images, generator=generator) % num_folds)[text_image_index]


class _Point(NamedTuple):
    """The smoothed cross entropy at (sigma, sigma beta), its gradient `(2,)` and its Hessian `(2, 2)`."""

    loss: float
    gradient: np.ndarray
    hessian: np.ndarray


def _derivatives(logits: torch.Tensor, evidence: torch.Tensor, index: torch.Tensor, point: np.ndarray) -> _Point:
    """One pass over the logits, in tiles that caches hold."""
    column = evidence.double()
    smoothing = PSEUDO_CAPTIONS / len(logits)
    powers = torch.stack([torch.ones_like(column), column, column.square()], dim=1)  # (images, 3)
    loss, gradient, hessian = 0.0, torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for rows in torch.arange(len(logits)).split(TILE_CAPTIONS):
        tile, own = logits[rows].double(), index[rows]
        total = (point[0] * tile).sub_(point[1] * column)
        loss -= float(((1 - smoothing) * total.gather(1, own[:, None])[:, 0] + smoothing * total.mean(dim=1)).sum())
        peak = total.amax(dim=1, keepdim=True)
        likelihood = total.sub_(peak).exp_()
        norm, first, second = (likelihood @ powers).T
        loss += float((peak[:, 0] + norm.log()).sum())
        own_forms = (1 - smoothing) * torch.stack([tile.gather(1, own[:, None])[:, 0], -column[own]], dim=1)
        own_forms += smoothing * torch.stack([tile.mean(dim=1), -column.mean().expand(len(own))], dim=1)
        weighted = likelihood.mul_(tile)
        mean, mixed = (weighted @ powers[:, :2]).T
        square = weighted.mul_(tile).sum(dim=1)
        means = torch.stack([mean, -first], dim=1) / norm[:, None]
        gradient += (means - own_forms).sum(dim=0)
        moments = torch.stack([square, -mixed, -mixed, second]) / norm
        hessian += moments.sum(dim=1).view(2, 2) - means.T @ means
    count = len(logits)
    return _Point(loss / count, gradient.numpy() / count, hessian.numpy() / count)


def _minimise(
    logits: torch.Tensor,
    evidence: torch.Tensor,
    index: torch.Tensor,
    with_evidence: bool,
    start: tuple[float, float] = (1.0, 0.3),
) -> tuple[float, float]:
    """
    (sigma, beta) of least smoothed cross entropy, by Newton's method on (sigma, sigma beta), in which it is convex,
    from `start`.
    """
    free = 2 if with_evidence else 1
    parameters = np.array([start[0], start[0] * start[1] if with_evidence else 0.0])
    here = _derivatives(logits, evidence, index, parameters)
    for _ in range(MOST_STEPS):
        step = np.zeros(2)
        step[:free] = np.linalg.solve(here.hessian[:free, :free] + 1e-12 * np.eye(free), here.gradient[:free])
        share = 1.0
        while share > 1e-6:
            trial = parameters - share * step
            if 0 < trial[0] < LARGEST_SCALE:
                there = _derivatives(logits, evidence, index, trial)
                if there.loss <= here.loss:
                    break
            share /= 2
        else:
            break
        moved, parameters, here = np.abs(parameters - trial).max(), trial, there
        if moved < 1e-9 * np.abs(parameters).max():
            break
    sigma = float(parameters[0])
    if not with_evidence:
        return sigma, 0.0
    beta = float(parameters[1]) / sigma
    if np.isfinite(beta) and beta > 0:
        return sigma, beta
    return _minimise(logits, evidence, index, False, start)  # convex: the least loss of beta >= 0 is at 0
