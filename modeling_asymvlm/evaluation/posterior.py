"""The retrieval posterior: the gallery as the set of possible answers, softmax(tau · score) as their probability.

The concentration of a text says how ambiguous the text is, without a gallery. The posterior says whether *this* result
is right, among what the gallery holds: one of them must be, which a score alone does not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .scores import Scores, check_image_index, score_blocks
from .softmax import GroupedSoftmax, RunningSoftmax, TopTwo


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
    for rows, block in finite_blocks(scores, num_texts, num_images, tile_size):
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


def finite_blocks(
    scores: Scores, num_texts: int, num_images: int, tile_size: int | None
) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
    """[`score_blocks`] of finite scores; others are refused with a `ValueError`."""
    for rows, block in score_blocks(scores, num_texts, num_images, tile_size):
        if not np.isfinite(block).all():
            raise ValueError(
                f"scores of rows {rows.start} to {rows.stop - 1} are NaN or infinite; a posterior needs finite ones. "
                "Look for NaN in the embeddings."
            )
        yield rows, block
