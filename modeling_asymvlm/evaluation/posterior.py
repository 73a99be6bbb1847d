"""The retrieval posterior: the gallery as the set of possible answers, softmax(tau · score) as their probability.

The concentration of a text says how ambiguous the text is, without a gallery. The posterior says whether *this* result
is right, among what the gallery holds: one of them must be, which a score alone does not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .scores import Scores, check_image_index, score_blocks
from .softmax import GroupedSoftmax, RunningSoftmax, TopTwo


MAX_NEWTON_STEPS = 100


@dataclass(frozen=True)
class QueryPosteriors:
    """The posterior of each query of one direction, all of shape `(queries,)`. See [`retrieval_posterior`].

    Attributes:
        top (`int64`): index of the first result; of equal ones the lowest.
        top_score, second_score (`float64`): scores of the first two results, in the unit of the scores; the second is
            -inf in a gallery of one.
        top_probability, second_probability (`float64`): their posteriors, in [0, 1].
        entropy (`float64`): of the posterior, in nats, from 0 to the logarithm of the gallery's size.
        own_log_probability (`float64`): logarithm of the posterior of the right answer; for an image, of all its own
            captions together.
    """

    top: npt.NDArray[np.int64]
    top_score: npt.NDArray[np.float64]
    second_score: npt.NDArray[np.float64]
    top_probability: npt.NDArray[np.float64]
    second_probability: npt.NDArray[np.float64]
    entropy: npt.NDArray[np.float64]
    own_log_probability: npt.NDArray[np.float64]

    @property
    def score_margin(self) -> npt.NDArray[np.float64]:
        """Difference of the first two scores, +inf in a gallery of one."""
        return self.top_score - self.second_score

    @property
    def margin(self) -> npt.NDArray[np.float64]:
        """Difference of the first two posteriors, in [0, 1]."""
        return self.top_probability - self.second_probability


@dataclass(frozen=True)
class RetrievalPosterior:
    """Both directions: `text_to_image` with a value a caption, `image_to_text` with a value an image that has any."""

    text_to_image: QueryPosteriors
    image_to_text: QueryPosteriors


def retrieval_posterior(
    scores: Scores,
    text_image_index: npt.ArrayLike,
    *,
    logit_scale: float,
    num_images: int | None = None,
    tile_size: int | None = None,
) -> RetrievalPosterior:
    """The posterior softmax(tau · score) over the gallery, of every caption and every image, in one pass.

    Args:
        scores, text_image_index, num_images, tile_size: as for [`rank_both_ways`]; scores must be finite, and a
            function is called once for each block.
        logit_scale (`float`): tau > 0: the model's own, or [`fit_logit_scale`] on validation data.

    Returns:
        [`RetrievalPosterior`]. An image with several captions shares its posterior among them.

    Raises:
        ValueError: if `logit_scale` is not positive, a score is not finite, and as [`rank_both_ways`].
    """
    index, num_images = check_image_index(scores, text_image_index, num_images)
    if not 0 < logit_scale < np.inf:
        raise ValueError(
            f"`logit_scale` is {logit_scale}; it must be positive and finite. Use the model's, or fit it."
        )
    num_texts = len(index)
    own, log_sum, entropy = (np.empty(num_texts) for _ in range(3))
    top_of_text, top_of_image = TopTwo(num_texts), TopTwo(num_images)
    of_image = RunningSoftmax(logit_scale, num_images)
    for rows, block in _finite_blocks(scores, num_texts, num_images, tile_size):
        own[rows] = block[np.arange(len(block)), index[rows]]
        of_text = RunningSoftmax(logit_scale, len(block))
        of_text.add(block.T)
        log_sum[rows], entropy[rows] = of_text.log_sum, of_text.entropy
        top_of_text.add(block.T, 0, rows)
        of_image.add(block)
        top_of_image.add(block, rows.start, slice(None))
    of_own = GroupedSoftmax(logit_scale, own, index)
    queries = of_own.groups
    return RetrievalPosterior(
        text_to_image=_posteriors(
            logit_scale, top_of_text, slice(None), log_sum, entropy, logit_scale * own - log_sum
        ),
        image_to_text=_posteriors(
            logit_scale,
            top_of_image,
            queries,
            of_image.log_sum[queries],
            of_image.entropy[queries],
            of_own.log_sum - of_image.log_sum[queries],
        ),
    )


def _posteriors(scale: float, best: TopTwo, queries: Any, log_sum: Any, entropy: Any, own: Any) -> QueryPosteriors:
    top_score, second_score = best.top_score[queries], best.second_score[queries]
    return QueryPosteriors(
        top=best.top[queries],
        top_score=top_score,
        second_score=second_score,
        # Rounding may leave 1 + 1e-16 where the first result has all the posterior.
        top_probability=np.minimum(np.exp(scale * top_score - log_sum), 1.0),
        second_probability=np.minimum(np.exp(scale * second_score - log_sum), 1.0),
        entropy=np.maximum(entropy, 0.0),
        own_log_probability=np.minimum(own, 0.0),
    )


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

    Args:
        scores, text_image_index, num_images, tile_size: as for [`retrieval_posterior`]; a function is called once for
            each block and step of Newton's method, about ten times.
        direction (`str`, defaults to `"text_to_image"`): whose likelihood.

    Returns:
        tau > 0, to a relative accuracy of 1e-6 where the scores allow it.

    Raises:
        ValueError: for an unknown direction; where every query finds its own answer first (the likelihood rises for
            ever); where own answers score no higher than the gallery on average (it falls from tau = 0); and as
            [`retrieval_posterior`].
    """
    if direction not in ("text_to_image", "image_to_text"):
        raise ValueError(f"`direction` is {direction!r}; it must be 'text_to_image' or 'image_to_text'.")
    index, num_images = check_image_index(scores, text_image_index, num_images)

    def derivatives(scale: float) -> tuple[float, float, float]:
        """First and second derivative of the negative log-likelihood, and the limit of the first for large scales."""
        own = np.empty(len(index))
        of_image = RunningSoftmax(scale, num_images)
        of_texts = []
        for rows, block in _finite_blocks(scores, len(index), num_images, tile_size):
            own[rows] = block[np.arange(len(block)), index[rows]]
            if direction == "image_to_text":
                of_image.add(block)
            else:
                of_texts.append(RunningSoftmax(scale, len(block)))
                of_texts[-1].add(block.T)
        if direction == "text_to_image":
            mean, variance, peak = (
                np.concatenate([getattr(part, name) for part in of_texts]) for name in ("mean", "variance", "peak")
            )
            return float(np.mean(mean - own)), float(np.mean(variance)), float(np.mean(peak - own))
        of_own = GroupedSoftmax(scale, own, index)
        queries = of_own.groups
        return (
            float(np.mean(of_image.mean[queries] - of_own.mean)),
            float(np.mean(of_image.variance[queries] - of_own.variance)),
            float(np.mean(of_image.peak[queries] - of_own.peak)),
        )

    slope, curvature, slope_at_infinity = derivatives(0.0)
    if slope_at_infinity <= 0:
        raise ValueError(
            "every query finds its own answer first, so that the likelihood rises with tau for ever. Use more, or "
            "harder, validation data."
        )
    if slope >= 0:
        raise ValueError(
            f"own answers score {-slope:.3g} above the mean of the gallery; without a positive difference no tau > 0 "
            "fits. Check `text_image_index` and the sign of the scores."
        )
    low, high, scale = 0.0, np.inf, 1 / np.sqrt(curvature)
    for _ in range(MAX_NEWTON_STEPS):
        slope, curvature, _ = derivatives(scale)
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else np.inf
        if not low < step < high or step > 8 * scale:
            step = (low + high) / 2 if np.isfinite(high) else 4 * scale
        if abs(step - scale) <= 1e-6 * scale:
            return float(step)
        scale = step
    raise ValueError(
        f"tau did not settle in {MAX_NEWTON_STEPS} steps and lies from {low:.3g} to {high:.3g}: nearly every query "
        "finds its own answer first. Use more, or harder, validation data."
    )


def _finite_blocks(
    scores: Scores, num_texts: int, num_images: int, tile_size: int | None
) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
    for rows, block in score_blocks(scores, num_texts, num_images, tile_size):
        if not np.isfinite(block).all():
            raise ValueError(
                f"scores of rows {rows.start} to {rows.stop - 1} are NaN or infinite; a posterior needs finite ones. "
                "Look for NaN in the embeddings."
            )
        yield rows, block
