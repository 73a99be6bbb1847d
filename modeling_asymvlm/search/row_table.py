"""What an index knows of its rows beside their vectors: labels, and columns of metadata to choose rows by."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import acero

from ..utils.checks import check_strings


LABEL, UNCERTAINTY = "label", "uncertainty"
MAX_PIECES = 64  # of a column; more are joined, which keeps many small additions cheap

Metadata: TypeAlias = Mapping[str, Any] | pa.Table


class RowTable:
    """
    Labels and metadata of the rows of an index. A table is never changed: what changes an index makes another.

    Args:
        table (`pa.Table`): a column `label` of strings, and those of the metadata.
    """

    def __init__(self, table: pa.Table):
        self.table = table

    @classmethod
    def empty(cls) -> Self:
        return cls(pa.table({LABEL: pa.array([], pa.large_string())}))

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def labels(self) -> pa.ChunkedArray:
        return self.table[LABEL]

    @property
    def metadata(self) -> pa.Table:
        return self.table.drop_columns([LABEL])

    def plus(self, num_rows: int, labels: Sequence[str] | None, metadata: Metadata | None) -> Self:
        """
        With further rows, whose labels are by default their numbers. A column that either side lacks is null there.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for another number of labels or of values than rows, for columns with the name of ours, and
                for values of another type than those that the column has.
        """
        texts = [str(len(self) + row) for row in range(num_rows)] if labels is None else checked_labels(labels)
        if len(texts) != num_rows:
            raise ValueError(f"There are {len(texts)} labels for {num_rows} embeddings: give one for each.")
        columns = checked_metadata(metadata, num_rows)
        named = {name: columns[name] for name in columns.column_names}
        piece = pa.table({LABEL: pa.array(texts, pa.large_string()), **named})
        try:
            table = pa.concat_tables([self.table, piece], promote_options="default")
        except pa.ArrowTypeError as error:
            raise ValueError(
                f"The metadata have another type than those of the index ({error}): convert them, or build the index "
                "again."
            ) from error
        pieces = max(column.num_chunks for column in table.columns)
        return type(self)(table if pieces <= MAX_PIECES else table.combine_chunks())

    def take(self, rows: np.ndarray) -> Self:
        """The rows of these numbers, in this order."""
        return type(self)(self.table.take(pa.array(rows)).combine_chunks())

    def rows_of(self, labels: Sequence[str]) -> np.ndarray:
        """Numbers of all rows that have one of the labels, ascending."""
        wanted = pa.array(labels, pa.large_string())
        return np.flatnonzero(pc.is_in(self.labels, value_set=wanted).to_numpy())

    def rows_where(self, condition: pc.Expression, uncertainty: np.ndarray | None) -> np.ndarray:
        """
        Numbers of the rows that fulfil a condition, ascending; where it is null, as for a value that is missing, they
        do not.

        Args:
            condition (`pc.Expression`): over `label`, the metadata and, where it is passed, `uncertainty`.
            uncertainty (`np.ndarray` of shape `(rows,)`, *optional*): 1 / kappa.

        Raises:
            ValueError: if no row fulfils it, and for what is no condition over these columns.
        """
        table = self.table if uncertainty is None else self.table.append_column(UNCERTAINTY, pa.array(uncertainty))
        source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
        project = acero.Declaration("project", acero.ProjectNodeOptions([condition], ["kept"]))
        try:
            kept = acero.Declaration.from_sequence([source, project]).to_table(use_threads=False)["kept"]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"where={condition} cannot be decided ({str(error).splitlines()[0]}): the columns are "
                f"{', '.join(f'{field.name} ({field.type})' for field in table.schema)}."
            ) from error
        if not pa.types.is_boolean(kept.type):
            raise ValueError(f"where={condition} is of type {kept.type}, but must be a condition.")
        rows = np.flatnonzero(pc.fill_null(kept, False).to_numpy())
        if not len(rows):
            raise ValueError(f"No row fulfils where={condition}.")
        return rows


def checked_labels(labels: Sequence[str]) -> list[str]:
    """Labels as a list; raises `TypeError` for what is no string."""
    if isinstance(labels, str):
        raise TypeError(f"The labels are one string, {labels!r}: pass a list of strings, one for each embedding.")
    texts = list(labels)
    check_strings(texts, "Label")
    return texts


def checked_metadata(metadata: Metadata | None, num_rows: int) -> pa.Table:
    """Metadata as a table of so many rows, without columns for none; see [`RowTable.plus`]."""
    if metadata is None:
        return pa.table({})
    try:
        table = metadata if isinstance(metadata, pa.Table) else pa.table(dict(metadata))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"The metadata are no table ({error}): pass a dictionary of columns, with one value of one type for each "
            "embedding."
        ) from error
    if taken := sorted({LABEL, UNCERTAINTY} & set(table.column_names)):
        raise ValueError(f"The metadata have a column {taken[0]!r}, which the index has itself: give it another name.")
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError(f"The metadata have columns {table.column_names}: give each another name.")
    if table.num_columns and table.num_rows != num_rows:
        raise ValueError(f"The metadata have {table.num_rows} values for {num_rows} embeddings: give one for each.")
    return table
