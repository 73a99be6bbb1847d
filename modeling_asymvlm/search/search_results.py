"""What a search gives, and how it is put together from batches of queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa


class Confidences(NamedTuple):
    """What a calibration says of a batch, float64 of shape `(batch,)`; see [`SearchResults`]."""

    confidence: np.ndarray | None = None
    presence: np.ndarray | None = None


class BatchResults(NamedTuple):
    """The best rows of each query of a batch, of shape `(batch, k)`, and which are proven; see [`SearchResults`]."""

    rows: np.ndarray
    scores: np.ndarray
    uncertainty: np.ndarray
    proven: np.ndarray
    log_posterior: np.ndarray | None
    confidences: Confidences


@dataclass(frozen=True)
class SearchResults:
    """
    The best results of every query, best first.

    Attributes:
        rows (int64, shape `(queries, k)`): rows of the index.
        labels (`list[list[str]]`, `queries` times `k`): their captions or image ids.
        scores (float64, shape `(queries, k)`):
            Log-likelihood ratios in nats against the uniform density, 0 being "no better than uniform"; cosines for
            `distribution="deterministic"`. Of an image index with a calibration, the corrected scores, in nats.
        log_posterior (float64, shape `(queries, k)`, or `None` where it was not asked for):
            Logarithm of the probability of each result among the whole index, softmax of tau times the score, or of
            the corrected score alone.
        uncertainty (float64, shape `(queries, k)`):
            1 / kappa of the text, which is the result in a text index and the query in an image index; infinite for
            kappa = 0 and NaN for `distribution="deterministic"`.
        proven (bool, shape `(queries,)`):
            Whether no row that is not listed has a higher score: of a search without `approximate`, for every query;
            with it, for none; of other candidates, see [`~SearchableIndex.refine`].
        confidence (float64, shape `(queries,)`, *optional*):
            Of an image index with a calibration: the probability that the first result is right, given that the answer
            is in the gallery. `None` where the posterior was not asked for, or the calibration does not trust it.
        presence (float64, shape `(queries,)`, *optional*):
            Likewise, the probability that the answer is in the gallery at all, for the prior that was passed. It looks
            at all images, like the posterior; `None` also for a single one.
    """

    rows: np.ndarray
    labels: list[list[str]]
    scores: np.ndarray
    log_posterior: np.ndarray | None
    uncertainty: np.ndarray
    proven: np.ndarray
    confidence: np.ndarray | None = None
    presence: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def exact(self) -> bool:
        """Whether the results of all queries are proven to be the best."""
        return bool(self.proven.all())

    @property
    def posterior(self) -> np.ndarray | None:
        """Probabilities, float64 of shape `(queries, k)`, or `None` where they were not asked for."""
        return None if self.log_posterior is None else np.exp(self.log_posterior)

    @classmethod
    def of_batches(cls, parts: Sequence[BatchResults], labels: pa.ChunkedArray) -> Self:
        """Results of consecutive batches; `labels` are those of all rows."""
        rows = np.concatenate([part.rows for part in parts])
        taken = labels.take(pa.array(rows.ravel())).to_pylist()
        return cls(
            rows=rows,
            labels=[taken[start : start + rows.shape[1]] for start in range(0, len(taken), rows.shape[1])],
            scores=np.concatenate([part.scores for part in parts]),
            log_posterior=_joined([part.log_posterior for part in parts]),
            uncertainty=np.concatenate([part.uncertainty for part in parts]),
            proven=np.concatenate([part.proven for part in parts]),
            confidence=_joined([part.confidences.confidence for part in parts]),
            presence=_joined([part.confidences.presence for part in parts]),
        )


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if len(arrays) == len(parts) else None
