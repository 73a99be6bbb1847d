"""The search that text and image indexes share: proposals, proofs, posteriors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .batch_search import BatchSearch, ScoredIndex, SearchPlan
from .gallery_scan import GalleryScan, scan_gallery
from .index_storage import Embeddings


METHODS = ("bound", "scan")

ELEMENTS_AT_A_TIME = 2**22  # of gathered float64 vectors


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
        exact (`bool`): whether these are proven to be the best, or come from an approximate index.
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
    exact: bool
    confidence: np.ndarray | None = None
    presence: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def posterior(self) -> np.ndarray | None:
        """Probabilities, float64 of shape `(queries, k)`, or `None` where they were not asked for."""
        return None if self.log_posterior is None else np.exp(self.log_posterior)


class SearchableIndex(ScoredIndex):
    """Search over a [`~index_storage.FlatIndex`], and the scores that text and image indexes share."""

    @torch.no_grad()
    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        posterior: bool | None = None,
        where: tuple[float, float] | None = None,
        method: str | None = None,
        approximate: faiss.Index | None = None,
        batch_size: int = 256,
        progress: bool = False,
        prior: float = 0.5,
    ) -> SearchResults:
        """
        The `k` best rows for every query, proven to be those of an exhaustive search in float64; of equal scores the
        lower row comes first.

        Args:
            queries (`torch.Tensor` or array of shape `(queries, dim)`):
                Image vectors of any non-zero length for a text index, natural parameters eta for an image index.
            k (`int`, *optional*, defaults to 10): results per query.
            posterior (`bool`, *optional*):
                Whether to give each result's probability among the whole index; by default unless `approximate` is
                passed. It needs the score of every row, in float32: its relative error is below about 2e-7 times tau
                times the largest kappa, and with a calibration times sigma.
            where (`tuple[float, float]`, *optional*):
                For text indexes, list only texts whose uncertainty 1 / kappa lies in this closed range; at most as
                many results come back as lie in it. The posterior stays that among the whole index.
            method (`str`, *optional*):
                `"bound"` for inner products by FAISS, `"scan"` for a pass by PyTorch, which gives the posterior in the
                same pass. By default `"scan"` where the posterior or `where` is asked for, and `"bound"` otherwise.
                The results are the same.
            approximate (`faiss.Index`, *optional*):
                What [`~FlatIndex.build_approximate`] gave, to take candidates from it instead. Their scores are exact,
                but the results are not proven to be the best and carry `exact=False`. No other row is looked at unless
                `posterior=True` asks for it.
            batch_size (`int`, *optional*, defaults to 256): queries at a time.
            progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
            prior (`float`, *optional*, defaults to 0.5):
                For `presence`: how often the answer is in the gallery, in (0, 1).

        Raises:
            ValueError: for queries that are empty, of another width, NaN or without direction, for `k` outside 1 to
                the number of rows, for a range that no text lies in, for a `prior` outside (0, 1), and for options
                that exclude one another.
        """
        prepared = self._prepare(queries)
        if not 1 <= k <= len(self):
            raise ValueError(f"k is {k}, but the index holds {len(self)} rows: k must be from 1 to that number.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
        if not 0 < prior < 1:
            raise ValueError(f"prior is {prior}, but must lie between 0 and 1: it is how often the answer is there.")
        posterior = approximate is None if posterior is None else posterior
        rows_allowed = np.arange(len(self)) if where is None else self._rows_in_range(*where)
        method = self._checked_method(method, posterior=posterior, where=where, approximate=approximate)
        plan = SearchPlan(min(k, len(rows_allowed)), rows_allowed, method, posterior, approximate, prior)
        parts = []
        starts = range(0, len(prepared), batch_size)
        for start in tqdm(starts, desc=f"Searching {len(self)} {self.kind}s", unit=" batches", disable=not progress):
            parts.append(BatchSearch(self, prepared[start : start + batch_size], plan).results())
        rows = np.concatenate([part.rows for part in parts])
        return SearchResults(
            rows=rows,
            labels=self._labels_of(rows),
            scores=np.concatenate([part.scores for part in parts]),
            log_posterior=_joined([part.log_posterior for part in parts]),
            uncertainty=np.concatenate([part.uncertainty for part in parts]),
            exact=approximate is None,
            confidence=_joined([part.confidences.confidence for part in parts]),
            presence=_joined([part.confidences.presence for part in parts]),
        )

    @torch.no_grad()
    def log_posterior(
        self, queries: Embeddings, rows: Sequence[Sequence[int]], *, batch_size: int = 256
    ) -> np.ndarray:
        """
        Log-probability, among the whole index, of the most probable of the given rows of each query: how well its best
        right answer conforms, for [`~conformal.ConformalSets`].

        Args:
            queries: as for [`search`].
            rows (`Sequence[Sequence[int]]`): for each query, the rows of its right answers, at least one.
            batch_size (`int`, *optional*, defaults to 256): queries at a time.

        Returns:
            float64 of shape `(queries,)`.
        """
        prepared = self._prepare(queries)
        if len(rows) != len(prepared) or any(not len(own) for own in rows):
            raise ValueError(
                f"rows holds {len(rows)} lists, {sum(not len(own) for own in rows)} of them empty, for "
                f"{len(prepared)} queries: give each the rows of its right answers, at least one."
            )
        right = [np.asarray(own) for own in rows]
        for row in (bound for own in right for bound in (own.min(), own.max())):
            if not 0 <= row < len(self):
                raise ValueError(f"rows names row {row} of an index of {len(self)} rows: give those from 0 on.")
        best = np.empty(len(prepared))
        for start in range(0, len(prepared), batch_size):
            batch = prepared[start : start + batch_size]
            log_sums = self._scan(batch).log_sums.numpy()
            lengths = np.array([len(own) for own in right[start : start + batch_size]])
            for length in np.unique(lengths):
                numbers = np.flatnonzero(lengths == length)
                own_rows = np.stack([right[start + number] for number in numbers])
                scores = self._scores(batch, numbers, self._keys(batch, numbers, own_rows))
                best[start + numbers] = self.posterior_scale * scores.max(axis=1) - log_sums[numbers]
        return best

    def _checked_method(self, method: str | None, **options: Any) -> str:
        if method is None:
            wants_scan = options["where"] is not None or (options["posterior"] and options["approximate"] is None)
            method = "scan" if wants_scan else "bound"
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
        if method == "scan" and options["approximate"] is not None:
            raise ValueError("An approximate index takes the place of method='bound': pass no where and no 'scan'.")
        if method == "bound" and options["where"] is not None:
            raise ValueError("method='bound' cannot filter: leave method out, or pass 'scan', to search with where.")
        approximate = options["approximate"]
        if approximate is not None and (approximate.ntotal, approximate.d) != (len(self), self._faiss.d):
            raise ValueError(
                f"The approximate index holds {approximate.ntotal} vectors of width {approximate.d}, this index "
                f"{len(self)} of width {self._faiss.d}: build it again with build_approximate()."
            )
        return method

    def _rows_in_range(self, low: float, high: float) -> np.ndarray:
        raise ValueError("where= filters texts by their uncertainty; the images of an ImageIndex have none.")

    def _gathered(self, rows: np.ndarray) -> torch.Tensor:
        """Embeddings in float64, `(..., dim)`."""
        return torch.from_numpy(self._writable_vectors()[rows][..., : self.dim]).double()

    def _inner_products(self, directions: torch.Tensor, rows: np.ndarray, *, normalize: bool) -> np.ndarray:
        """float64 `(q, c)` of directions `(q, dim)` with rows `(q, c)`; equal vectors give equal numbers."""
        products = np.empty(rows.shape)
        step = max(1, ELEMENTS_AT_A_TIME // (rows.shape[1] * self.dim))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            vectors = self._gathered(rows[some])
            vectors = F.normalize(vectors, dim=-1) if normalize else vectors
            products[some] = (vectors * directions[some, None]).sum(dim=-1).numpy()
        return products

    def _likelihood(self, cosines: Any, concentration: Any, log_normalizers: Any) -> Any:
        """Scores of cosines, elementwise, torch tensors all."""
        return self.law.scores_of_cosines(cosines, concentration, log_normalizers)

    def _log_normalizers(self, concentration: torch.Tensor) -> torch.Tensor:
        return self.law.log_normalizer(concentration, self.dim)

    def _scan(self, batch: torch.Tensor, num_closest: int = 0) -> GalleryScan:
        """The sums of the posterior over the whole index, without a list of rows."""
        size, scale = (len(batch), len(self)), self.posterior_scale
        return scan_gallery(self._tiles(batch), *size, count=0, logit_scale=scale, num_closest=num_closest)

    def _uncertainty_of(self, concentration: np.ndarray) -> np.ndarray:
        if not self.law.has_concentration:
            return np.full_like(concentration, np.nan)
        with np.errstate(divide="ignore"):
            return 1 / concentration

    def _labels_of(self, rows: np.ndarray) -> list[list[str]]:
        taken = self.labels.take(pa.array(rows.ravel())).to_pylist()
        return [taken[start : start + rows.shape[1]] for start in range(0, len(taken), rows.shape[1])]


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if len(arrays) == len(parts) else None
