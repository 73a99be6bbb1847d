"""The search that text and image indexes share: proposals, proofs, posteriors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

from ..model.modeling_asymvlm import AsymVLMModel
from .batch_search import BatchSearch, ScoredIndex, SearchPlan
from .gallery_scan import GalleryScan, scan_gallery
from .index_storage import Embeddings
from .refinement import Refinement, checked_candidates, checked_query_vectors
from .search_results import SearchResults


if TYPE_CHECKING:
    from .lance_index import LanceIndex


METHODS = ("bound", "scan")


class SearchableIndex(ScoredIndex):
    """Search over a [`~index_storage.FlatIndex`], and the scores that text and image indexes share."""

    @torch.no_grad()
    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        posterior: bool | None = None,
        where: tuple[float, float] | pc.Expression | None = None,
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
            where (`pyarrow.compute.Expression` or `tuple[float, float]`, *optional*):
                List only rows that fulfil this condition over their metadata, their `label` and, in text indexes, the
                `uncertainty` 1 / kappa, as in `pc.field("year") >= 2020`; of a text index, a pair is the closed range
                of the uncertainty. At most as many results come back as rows fulfil it. The posterior stays that among
                the whole index.
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
                the number of rows, for a condition that no row fulfils, for a `prior` outside (0, 1), and for options
                that exclude one another.
        """
        prepared = self._prepare(queries)
        if not 1 <= k <= len(self):
            raise ValueError(f"k is {k}, but the index holds {len(self)} rows: k must be from 1 to that number.")
        check_batch_size(batch_size)
        check_prior(prior)
        posterior = approximate is None if posterior is None else posterior
        rows_allowed = self._rows_allowed(where)
        method = self._checked_method(method, posterior=posterior, where=where, approximate=approximate)
        plan = SearchPlan(min(k, len(rows_allowed)), rows_allowed, method, posterior, approximate, prior)
        parts = []
        starts = range(0, len(prepared), batch_size)
        for start in tqdm(starts, desc=f"Searching {len(self)} {self.kind}s", unit=" batches", disable=not progress):
            parts.append(BatchSearch(self, prepared[start : start + batch_size], plan).results())
        return SearchResults.of_batches(parts, self.labels)

    @torch.no_grad()
    def refine(
        self,
        queries: Embeddings,
        candidate_rows: npt.ArrayLike,
        k: int = 10,
        *,
        searched_with: npt.ArrayLike | None = None,
        posterior: bool = False,
        batch_size: int = 256,
        prior: float = 0.5,
    ) -> SearchResults:
        """
        The `k` best of candidates that any engine found, by their exact scores; of equal scores the lower row comes
        first. No other row is looked at, unless `posterior=True` asks for it.

        A query is `proven` if no row beyond its candidates can reach its k-th score, so that the results are those of
        [`search`]. That takes for granted what only the engine can know: that the candidates are, of all rows, those
        whose [`vectors`] have the largest inner products with the query's vector, in no particular order. An
        exhaustive engine that keeps both in float32 and sums in float32 or better gives them (flat indexes; in
        PostgreSQL a query without an index); its rounding is allowed for. For an approximate engine, for half
        precision, for a union of several lists or for candidates of a filter that should count, leave `searched_with`
        out: then a query is proven only if its candidates are all rows.

        Args:
            queries (`torch.Tensor` or array of shape `(queries, dim)`): as for [`search`].
            candidate_rows (int64 of shape `(queries, candidates)`): rows of this index, all different for a query.
            k (`int`, *optional*, defaults to 10): results per query, at most as many as there are candidates.
            searched_with (float32 of shape `(queries, width)`, *optional*):
                The vectors that [`query_vectors`] gave for these queries, if the engine is exhaustive and the
                candidates are those of the largest inner products with them.
            posterior (`bool`, *optional*, defaults to `False`):
                Whether to give each result's probability among the whole index, and the confidences of a calibration;
                it needs a pass over all rows.
            batch_size (`int`, *optional*, defaults to 256): queries at a time.
            prior (`float`, *optional*, defaults to 0.5): as for [`search`].

        Raises:
            ValueError: as [`search`], and for candidates of another shape, that are no integers, no rows of this index
                or given twice, for `k` above their number, and for vectors that are not those of the queries.
        """
        prepared = self._prepare(queries)
        candidates = checked_candidates(candidate_rows, len(prepared), len(self))
        if not 1 <= k <= candidates.shape[1]:
            raise ValueError(
                f"k is {k}, but there are {candidates.shape[1]} candidates for each query: k must be from 1 to that "
                "number; ask the engine for more."
            )
        check_batch_size(batch_size)
        check_prior(prior)
        vectors = None
        if searched_with is not None:
            vectors = checked_query_vectors(searched_with, len(prepared), self._faiss.d)
        parts = []
        for start in range(0, len(prepared), batch_size):
            some = slice(start, start + batch_size)
            own = None if vectors is None else vectors[some]
            refinement = Refinement(self, prepared[some], candidates[some], own, len(self), start)
            parts.append(refinement.results(k, posterior, prior))
        return SearchResults.of_batches(parts, self.labels)

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

    def to_lancedb(self, uri: str, table: str) -> "LanceIndex":
        """
        Writes the rows into a new table of LanceDB, which need not fit into memory, and searches them there.

        Args:
            uri (`str`): a folder, or an address in object storage that LanceDB knows.
            table (`str`): name of the new table.

        Raises:
            ImportError: without the extra `lancedb`.
            ValueError: if there is a table of this name, two rows have the same label, or a column of the metadata has
                a name that the table needs.
        """
        from .lance_index import LanceIndex

        return LanceIndex.create(self, uri, table)

    @classmethod
    def from_lancedb(cls, uri: str, table: str, *, model: AsymVLMModel | None = None) -> "LanceIndex":
        """
        Opens a table that [`to_lancedb`] wrote.

        Args:
            uri, table (`str`): as for [`to_lancedb`].
            model (`AsymVLMModel`, *optional*): the model that the queries will come from, to be compared with the one
                that built the index.

        Raises:
            ImportError: without the extra `lancedb`.
            ValueError: if there is no such table, or it is no index of this kind, or one of another model.
        """
        from .lance_index import LanceIndex

        return LanceIndex.open(cls, uri, table, model)

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

    def _rows_allowed(self, where: tuple[float, float] | pc.Expression | None) -> np.ndarray:
        if where is None:
            return np.arange(len(self))
        if isinstance(where, pc.Expression):
            return self._table.rows_where(where, self._row_uncertainty())
        return self._rows_in_range(*where)

    def _row_uncertainty(self) -> np.ndarray | None:
        """1 / kappa of every row, if rows have one."""
        return None

    def _rows_in_range(self, low: float, high: float) -> np.ndarray:
        raise ValueError("where= filters texts by their uncertainty; the images of an ImageIndex have none.")

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


def check_prior(prior: float) -> None:
    """Raises `ValueError` unless it is a probability that leaves something open."""
    if not 0 < prior < 1:
        raise ValueError(f"prior is {prior}, but must lie between 0 and 1: it is how often the answer is there.")


def check_batch_size(batch_size: int) -> None:
    """Raises `ValueError` unless it is positive."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
