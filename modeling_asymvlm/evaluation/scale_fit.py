"""The temperature of the retrieval posterior that held-out pairs are most likely under, in few passes over the scores.

The negative log-likelihood is a difference of log-sums, whose derivatives in tau are the cumulants of the scores under
the posterior. A sample of the queries, held in memory, says about where the minimum lies; one pass over all scores
there gives six derivatives, whose series leads to the minimum itself.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .posterior import finite_blocks
from .scores import EmbeddingScores, Scores, check_image_index
from .softmax import GroupedSoftmax, RunningSoftmax


ORDER = 6
RADIUS = 0.2  # how far the series is followed, relative to tau
TOLERANCE = 1e-6
MAX_STEPS = 100
SAMPLED_SCORES = 2**23  # 32 MB in single precision
TEXTS_IN_A_ROW = 64  # captions of an image often stand together, so that many short rows of them are sampled


class _Derivatives(NamedTuple):
    """Of the mean negative log-likelihood at one tau: its value, derivatives, and the limit of the first of them."""

    value: float
    derivatives: npt.NDArray[np.float64]  # (ORDER,)
    slope_at_infinity: float
    num_queries: int


Objective = Callable[[float], _Derivatives]


def fit_logit_scale(
    scores: Scores,
    text_image_index: npt.ArrayLike,
    *,
    direction: Literal["text_to_image", "image_to_text"] = "text_to_image",
    num_images: int | None = None,
    tile_size: int | None = None,
) -> float:
    """The temperature tau of least negative log-likelihood, the mean of `-own_log_probability`.

    Fit it on validation data and use it on test data. Text -> image the likelihood is log-concave in tau and the
    minimum unique; image -> text it is so where every image has one caption.

    Where every query finds its own answer first, the likelihood rises with tau for ever. Then tau is taken at which it
    is 1 / (queries + 1) nats from its limit, since so many queries do not vouch for more, with a `UserWarning`.

    Args:
        scores, text_image_index, num_images, tile_size: as for [`retrieval_posterior`]; a function is called for all
            blocks two or three times.
        direction (`str`, defaults to `"text_to_image"`): whose likelihood.

    Returns:
        tau > 0, to a relative accuracy of 1e-6 where the scores allow it.

    Raises:
        ValueError: for an unknown direction; where own answers score no higher than the gallery on average (the
            likelihood falls from tau = 0); and as [`retrieval_posterior`].
    """
    if direction not in ("text_to_image", "image_to_text"):
        raise ValueError(f"`direction` is {direction!r}; it must be 'text_to_image' or 'image_to_text'.")
    index, num_images = check_image_index(scores, text_image_index, num_images)
    sample, own = (_sampled_texts if direction == "text_to_image" else _sampled_images)(
        scores, index, num_images, tile_size
    )
    of_sample = _Likelihood(sample, own, sample.shape[1], direction, tile_size)
    deviation = float(sample.std())
    start = 1 / deviation if deviation > 0 else 1.0
    is_whole = sample.shape == (len(index), num_images)
    of_all = of_sample if is_whole else _Likelihood(scores, index, num_images, direction, tile_size)
    if not is_whole and of_sample(0.0).derivatives[0] < 0:
        start = _least(of_sample, start)[0]
    tau, is_bound = _least(of_all, start)
    if is_bound:
        queries = of_all(tau).num_queries
        warnings.warn(
            f"every query finds its own answer first, so that the likelihood rises with tau for ever: tau is taken as "
            f"{tau:.4g}, at which it is 1/{queries + 1} nats from its limit. Use more, or harder, validation data.",
            stacklevel=2,
        )
    return tau


def _least(objective: Objective, start: float) -> tuple[float, bool]:
    """tau of the least value, and whether it is the bound of an objective that falls for ever."""
    low, high, tau = 0.0, math.inf, start
    for _ in range(MAX_STEPS):
        found = objective(tau)
        if found.slope_at_infinity <= 0:
            return _bound(objective, start), True
        slope, curvature = found.derivatives[:2]
        low, high = (tau, high) if slope < 0 else (low, tau)
        if high < start / 100:
            _check_rising(objective(0.0))
        root = _root_of_series(found.derivatives, RADIUS * tau)
        if root is not None:
            last = abs(found.derivatives[-1] * root ** (ORDER - 1)) / math.factorial(ORDER - 1)
            if last <= TOLERANCE * tau * curvature:
                return float(tau + root), False
            step = tau + root
        else:
            step = tau - slope / curvature if curvature > 0 else math.inf
        if not low < step < high or step > 8 * tau:
            step = (low + high) / 2 if math.isfinite(high) else 4 * tau
        tau = step
    raise ValueError(
        f"tau did not settle in {MAX_STEPS} steps and lies from {low:.3g} to {high:.3g}: nearly every query finds its "
        "own answer first. Use more, or harder, validation data."
    )


def _root_of_series(derivatives: npt.NDArray[np.float64], radius: float) -> float | None:
    """Where the first derivative vanishes, relative to where they were taken; `None` if not within the radius."""
    slope = np.polynomial.Polynomial(derivatives / [math.factorial(power) for power in range(ORDER)])
    curvature = slope.deriv()
    root = 0.0
    for _ in range(50):
        if curvature(root) <= 0:
            return None
        step = slope(root) / curvature(root)
        root = float(root - step)
        if abs(root) > radius:
            return None
        if abs(step) <= 1e-12 * radius:
            break
    return root


def _bound(objective: Objective, start: float) -> float:
    """tau at which an objective that falls for ever is 1 / (queries + 1) nats above its limit, by Newton's method."""
    _check_rising(objective(0.0))
    least = objective(1e12 * start)
    target = least.value + 1 / (least.num_queries + 1)
    low, high, tau = 0.0, math.inf, start
    for _ in range(MAX_STEPS):
        found = objective(tau)
        low, high = (tau, high) if found.value > target else (low, tau)
        slope = found.derivatives[0]
        step = tau - (found.value - target) / slope if slope < 0 else 0.0
        if not low < step < high:
            step = (low + high) / 2 if math.isfinite(high) else 2 * tau
        if abs(step - tau) <= TOLERANCE * tau:
            break
        tau = step
    return float(tau)


def _check_rising(at_zero: _Derivatives) -> None:
    slope = at_zero.derivatives[0]
    if slope >= 0:
        raise ValueError(
            f"own answers score {-slope:.3g} above the mean of the gallery; without a positive difference no tau > 0 "
            "fits. Check `text_image_index` and the sign of the scores."
        )


class _Likelihood:
    """
    The mean negative log-likelihood of the queries of a direction as a function of tau.

    Args:
        scores, num_images, direction, tile_size: as for [`fit_logit_scale`].
        index (`int64`, shape `(texts,)`): the image of each caption, -1 where that is none of the columns.
    """

    def __init__(self, scores: Any, index: Any, num_images: int, direction: str, tile_size: int | None):
        self.scores, self.index, self.num_images = scores, index, num_images
        self.direction, self.tile_size = direction, tile_size

    def __call__(self, scale: float) -> _Derivatives:
        parts: list[RunningSoftmax] = []
        of_images = RunningSoftmax(scale, self.num_images, ORDER)
        own = []
        for rows, block in finite_blocks(self.scores, len(self.index), self.num_images, self.tile_size):
            column = self.index[rows]
            known = np.flatnonzero(column >= 0)
            own.append(block[known, column[known]])
            if self.direction == "image_to_text":
                of_images.add(block)
            else:
                parts.append(RunningSoftmax(scale, len(block), ORDER))
                parts[-1].add(block.T)
        own_scores = np.concatenate(own).astype(np.float64)
        if self.direction == "text_to_image":
            total, peak = (np.concatenate([getattr(part, name) for part in parts]) for name in ("log_total", "peak"))
            derivatives = np.concatenate([part.cumulants for part in parts], axis=1).mean(axis=1)
            derivatives[0] -= own_scores.mean()
            above = peak - own_scores
        else:
            of_own = GroupedSoftmax(scale, own_scores, self.index[self.index >= 0], ORDER)
            queries = of_own.groups
            derivatives = (of_images.cumulants[:, queries] - of_own.cumulants).mean(axis=1)
            total, above = of_images.log_total[queries] - of_own.log_total, of_images.peak[queries] - of_own.peak
        value = total + scale * above
        return _Derivatives(float(value.mean()), derivatives, float(above.mean()), len(value))


def _sampled_texts(scores: Any, index: Any, num_images: int, tile_size: int | None) -> tuple[Any, Any]:
    """Scores of evenly spaced rows of captions with all images, and the images of these captions."""
    number = max(1, SAMPLED_SCORES // num_images // TEXTS_IN_A_ROW)
    if len(index) <= number * TEXTS_IN_A_ROW:
        starts, length = [0], len(index)
    else:
        starts, length = np.linspace(0, len(index) - TEXTS_IN_A_ROW, number).astype(int).tolist(), TEXTS_IN_A_ROW
    parts = []
    for start in starts:
        part = partial(_shifted, scores, start) if callable(scores) else scores[start : start + length]
        parts += [np.array(block) for _, block in finite_blocks(part, length, num_images, tile_size)]
    return np.concatenate(parts), np.concatenate([index[start : start + length] for start in starts])


def _shifted(scores: Any, start: int, rows: slice) -> Any:
    return scores(slice(start + rows.start, start + rows.stop))


def _sampled_images(scores: Any, index: Any, num_images: int, tile_size: int | None) -> tuple[Any, Any]:
    """Scores of all captions with evenly spaced images that have any, and the images of the captions among these."""
    images = np.unique(index)
    number = min(len(images), max(1, SAMPLED_SCORES // len(index)))
    images = images[np.linspace(0, len(images) - 1, number).astype(int)]
    columns = slice(None)
    if isinstance(scores, EmbeddingScores):
        scores = EmbeddingScores(scores.text_embeds, scores.image_embeds[images.tolist()], scores.score)
        num_images = number
    else:
        columns = images
    blocks = finite_blocks(scores, len(index), num_images, tile_size)
    sample = np.concatenate([block[:, columns] for _, block in blocks])
    position = np.full(max(num_images, int(index.max()) + 1), -1)
    position[images] = np.arange(number)
    return sample, position[index]
