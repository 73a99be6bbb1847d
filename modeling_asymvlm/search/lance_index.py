"""Rows in a table of LanceDB, on disk or in object storage, searched as exactly as those in memory.

The table has a column `label`, the float32 `vector` of each row, what float64 scores need beside it (`concentration`
and `log_normalizer` of texts, `evidence` of corrected images), and the metadata. Its schema names the settings, the
model's head and the calibration, without which it is not read.

LanceDB lists the rows of largest inner product with the vector of a query, by an exhaustive search in float32. An
index of these candidates alone gives their exact scores and the proof that none was missed (see [`refinement`]).
Queries without one are tried again, with more candidates and a closer tangent.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from ..model.modeling_asymvlm import AsymVLMModel
from ..utils.extras import require
from .batch_search import ScoredIndex
from .certified_top_k import CANDIDATES_PER_RESULT, FIRST_CANDIDATES, GROWTH
from .index_storage import Embeddings
from .refinement import Refinement
from .row_table import LABEL, Metadata, checked_labels
from .search_results import SearchResults


require(__name__, "lancedb")

import lancedb  # noqa: E402


SETTINGS = b"asymvlm"  # of the schema's metadata, as JSON
FORMAT = 1
VECTOR, ROW_ID, QUERY = "vector", "_rowid", "query_index"
ROWS_AT_A_TIME, QUERIES_AT_A_TIME = 16_384, 64
SAMPLE_SIZE = 4096  # rows that tell where the tangents of a first search touch


class LanceIndex:
    """
    An index in a table of LanceDB, made by `to_lancedb` of a `TextIndex` or `ImageIndex`, and opened by
    `from_lancedb`. Labels are different from one another, and are the ids of rows. It sees the table as it was when it
    was opened or [`refresh`]ed, with its own changes.

    Args:
        table (`lancedb.table.Table`): the table.
        template (`ScoredIndex`): an index without rows, with the table's settings.
    """

    def __init__(self, table: Any, template: ScoredIndex):
        self.table, self._template = table, template
        self._describe()

    @classmethod
    def create(cls, index: ScoredIndex, uri: str, name: str) -> Self:
        """See [`~index_search.SearchableIndex.to_lancedb`]."""
        label, count = max(Counter(index.labels.to_pylist()).items(), key=itemgetter(1), default=("", 0))
        if count > 1:
            raise ValueError(f"The label {label!r} is that of {count} rows, but must be the id of one in a table.")
        settings = json.dumps({"format": FORMAT, **index._settings()})
        schema = _columns(index, slice(0, 0)).schema.with_metadata({SETTINGS: settings.encode()})
        if repeated := {name for name in schema.names if schema.names.count(name) > 1}:
            raise ValueError(f"The metadata have a column {min(repeated)!r}, which the table needs itself: rename it.")
        try:
            table = lancedb.connect(uri).create_table(name, _reader(index, schema))
        except ValueError as error:
            raise ValueError(f"There is no new table {name!r} at {uri!r} ({error}): choose another name.") from error
        return cls(table, index._blank())

    @classmethod
    def open(cls, kind: type[ScoredIndex], uri: str, name: str, model: AsymVLMModel | None) -> Self:
        """See [`~index_search.SearchableIndex.from_lancedb`]."""
        table = lancedb.connect(uri).open_table(name)
        settings = json.loads((table.schema.metadata or {}).get(SETTINGS, b"{}"))
        found = settings.get("format"), settings.get("kind")
        if found != (FORMAT, kind.kind):
            raise ValueError(
                f"The table {name!r} at {uri!r} holds {found[1] or 'no'} index of format {found[0]}, but one of "
                f"{kind.kind}s and format {FORMAT} is wanted: make it with {kind.__name__}.to_lancedb."
            )
        template = kind._from_settings(settings)
        template.model_fingerprint = settings["model"]
        if model is not None:
            template._check_model(model)
        return cls(table, template)

    def __len__(self) -> int:
        return self.table.count_rows()

    def refresh(self) -> None:
        """Sees what others changed since."""
        self.table.checkout_latest()
        self._describe()

    def upsert(self, embeddings: Embeddings, labels: Sequence[str], metadata: Metadata | None = None) -> None:
        """
        Puts rows in place of those that have their labels, metadata and all, and appends the others, in one version of
        the table.

        Args:
            embeddings: as for `add` of the index in memory.
            labels (`Sequence[str]`): all different.
            metadata (`dict` of columns or `pa.Table`, *optional*): of the table's columns; null where one is left out.

        Raises:
            TypeError, ValueError: as `upsert` of the index in memory, and for columns that the table does not have.
        """
        rows = self._template._blank()
        rows.upsert(embeddings, labels, metadata)
        columns, schema = _columns(rows, slice(None)), self.table.schema
        if foreign := [name for name in columns.column_names if name not in schema.names]:
            raise ValueError(
                f"The metadata have a column {foreign[0]!r}, but the table has {', '.join(schema.names)}: add it with "
                "table.add_columns first."
            )
        try:
            arrays = [
                columns[name].cast(kind) if name in columns.column_names else pa.nulls(len(rows), kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ]
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"The metadata have another type than those of the table ({error}): convert them."
            ) from error
        merge = self.table.merge_insert(LABEL).when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.table(arrays, schema=schema))
        self._describe()

    def remove(self, labels: Sequence[str]) -> None:
        """
        Removes rows, all of them or, after an error, none.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for a label that no row has.
        """
        wanted = set(checked_labels(labels))
        condition = f"{LABEL} IN ({', '.join(map(_quoted, sorted(wanted)))})"
        there = self.table.search().where(condition).select([LABEL]).to_arrow()[LABEL].to_pylist() if wanted else []
        if missing := wanted - set(there):
            raise ValueError(
                f"No row has the label {min(missing)!r}, nor {len(missing) - 1} others: none was removed."
            )
        if wanted:
            self.table.delete(condition)
            self._describe()

    @torch.no_grad()
    def search(
        self, queries: Embeddings, k: int = 10, *, where: str | None = None, posterior: bool = False
    ) -> SearchResults:
        """
        The `k` best rows of every query, with exact scores. `proven` says for which of them no row of the table, or
        none that fulfils `where`, was missed.

        Args:
            queries (`torch.Tensor` or array of shape `(queries, dim)`): as for the index in memory.
            k (`int`, *optional*, defaults to 10): results per query.
            where (`str`, *optional*):
                List only rows that fulfil this condition in SQL over the columns of the table, as in
                `"year >= 2020 AND concentration > 10"`. The posterior stays that among the whole table.
            posterior (`bool`, *optional*, defaults to `False`):
                Whether to give each result's probability, and the confidence of a calibration; it reads the whole
                table once. `presence` is left to indexes in memory.

        Returns:
            [`~search_results.SearchResults`]; its `rows` are LanceDB's row ids in this version of the table.

        Raises:
            ValueError: for queries as `search` of the index in memory, for `k` outside 1 to the number of rows, and
                for a condition that no row fulfils, or that LanceDB does not understand.
        """
        prepared = self._template._prepare(queries)
        num_rows = len(self)
        if not 1 <= k <= num_rows:
            raise ValueError(f"k is {k}, but the table holds {num_rows} rows: k must be from 1 to that number.")
        num_allowed = num_rows if where is None else self.table.count_rows(where)
        if not num_allowed:
            raise ValueError(f"No row fulfils where={where!r}.")
        k = min(k, num_allowed)
        parts = [self._search(some, k, num_allowed, where) for some in prepared.split(QUERIES_AT_A_TIME)]
        found = SearchResults(
            rows=np.concatenate([part.rows for part in parts]),
            labels=[labels for part in parts for labels in part.labels],
            scores=np.concatenate([part.scores for part in parts]),
            log_posterior=None,
            uncertainty=np.concatenate([part.uncertainty for part in parts]),
            proven=np.concatenate([part.proven for part in parts]),
        )
        if not posterior:
            return found
        log_posterior = self._template.posterior_scale * found.scores - self._log_sums(prepared)[:, None]
        no_images = torch.zeros(len(prepared), 0, dtype=torch.int64)
        confidences = self._template._confidences(prepared, log_posterior, no_images, prior=0.5)
        return replace(found, log_posterior=log_posterior, confidence=confidences.confidence)

    def _search(self, batch: torch.Tensor, k: int, num_allowed: int, where: str | None) -> SearchResults:
        shape = len(batch), k
        rows, scores, uncertainty = np.empty(shape, np.int64), np.empty(shape), np.empty(shape)
        labels: list[list[str]] = [[] for _ in range(len(batch))]
        proven = np.zeros(len(batch), bool)
        pending, tangents = np.arange(len(batch)), self._template._tangents(batch, None)
        first = CANDIDATES_PER_RESULT * k + FIRST_CANDIDATES
        for count in (min(first, num_allowed), min(GROWTH * first, num_allowed)):
            vectors = self._template._bound_queries(batch[pending], tangents)[0]
            found = self._nearest(vectors.numpy(), count, where)
            candidates = self._index_of(found)
            places = np.arange(len(found)).reshape(len(pending), count)
            refinement = Refinement(candidates, batch[pending], places, vectors.double(), num_allowed)
            best = refinement.results(k, posterior=False, prior=0.5)
            own_labels = SearchResults.of_batches([best], candidates.labels).labels
            for place, query in enumerate(pending.tolist()):
                labels[query] = own_labels[place]
            rows[pending] = found[ROW_ID].to_numpy().astype(np.int64)[best.rows]
            scores[pending], uncertainty[pending], proven[pending] = best.scores, best.uncertainty, best.proven
            unproven = np.flatnonzero(~best.proven)
            if not len(unproven):
                break
            tangents = candidates._tangents(batch[pending[unproven]], best.rows[unproven, -1])
            pending = pending[unproven]
        return SearchResults(rows, labels, scores, None, uncertainty, proven)

    def _nearest(self, vectors: np.ndarray, count: int, where: str | None) -> pa.Table:
        """The `count` rows of largest inner product for each vector, one after the other, by an exhaustive search."""
        query = self.table.search(vectors, vector_column_name=VECTOR).distance_type("dot").bypass_vector_index()
        query = query if where is None else query.where(where, prefilter=True)
        names = [LABEL, VECTOR, *self._template._row_columns()]
        found = query.limit(count).with_row_id(True).select([*names, "_distance"]).to_arrow()
        return found.sort_by(QUERY) if QUERY in found.column_names else found  # of one query there is no number

    def _index_of(self, rows: pa.Table) -> ScoredIndex:
        """An index of rows of the table, with the extent of the whole."""
        index = self._template._blank()
        flat = rows[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        index._append(flat.reshape(len(rows), -1), rows[LABEL].to_pylist(), None)
        index._set_columns({name: rows[name].to_numpy() for name in index._row_columns()}, self._extent)
        return index

    def _log_sums(self, batch: torch.Tensor) -> np.ndarray:
        sums = torch.full((len(batch),), -torch.inf, dtype=torch.float64)
        names = [LABEL, VECTOR, *self._template._row_columns()]
        for rows in self.table.search().select(names).to_batches(ROWS_AT_A_TIME):
            if len(rows):
                sums = torch.logaddexp(sums, self._index_of(pa.Table.from_batches([rows]))._scan(batch).log_sums)
        return sums.numpy()

    def _describe(self) -> None:
        """Reads what bounds need of all rows: the extent of their columns, and a sample for tangents."""
        self._extent: dict[str, tuple[float, float]] = {}
        names = list(self._template._row_columns())
        if not len(self):
            return
        if names:
            for rows in self.table.search().select(names).to_batches(ROWS_AT_A_TIME):
                for name in names if len(rows) else []:
                    values = rows[name].to_numpy(zero_copy_only=False)
                    low, high = self._extent.get(name, (np.inf, -np.inf))
                    self._extent[name] = min(low, float(values.min())), max(high, float(values.max()))
        some = self.table.search().limit(SAMPLE_SIZE).select([LABEL, VECTOR, *names]).to_arrow()
        self._template._set_columns({name: np.empty(0) for name in names}, self._extent)
        self._template._sample = torch.from_numpy(self._index_of(some).vectors.copy())


def _columns(index: ScoredIndex, rows: slice) -> pa.Table:
    """Rows of an index in memory as rows of a table."""
    vectors = index._writable_vectors()[rows]
    width = vectors.shape[1]
    arrays = {VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)}
    arrays |= {name: pa.array(values[rows]) for name, values in index._row_columns().items()}
    table = index._table.table[rows]
    for name, values in arrays.items():
        table = table.append_column(name, values)
    return table


def _reader(index: ScoredIndex, schema: pa.Schema) -> pa.RecordBatchReader:
    """All rows of an index in memory, some at a time."""

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(index), ROWS_AT_A_TIME):
            columns = _columns(index, slice(start, start + ROWS_AT_A_TIME))
            yield from columns.replace_schema_metadata(schema.metadata).combine_chunks().to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())


def _quoted(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"
