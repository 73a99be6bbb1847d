"""Rows that come, change and go: an index of a gallery that lives.

Rows are kept without gaps. What is removed is overwritten by the last rows, so that a removal costs as much as it
removes, besides a pass over labels and metadata; the numbers of those rows change, and their labels do not. FAISS
keeps the memory of removed rows until [`LivingIndex.compact`].
"""

from collections import Counter
from collections.abc import Sequence

import faiss
import pyarrow as pa

from .faiss_access import own_vectors
from .index_storage import Embeddings, FlatIndex
from .row_table import Metadata, checked_labels


EDITED = "edited"  # stands among the fingerprints of splits for what these no longer tell


class LivingIndex(FlatIndex):
    """Growth, replacement and removal by label over a [`~index_storage.FlatIndex`]."""

    @property
    def metadata(self) -> pa.Table:
        """
        The columns that rows were added with, `(rows, columns)`, null where they were not given. Those of results are
        `index.metadata.take(found.rows[query])`.
        """
        return self._table.metadata

    def remove(self, labels: Sequence[str]) -> None:
        """
        Removes all rows that have one of the labels; all of them or, after an error, none. Row numbers of other rows
        may change, labels do not.

        Raises:
            TypeError: for labels that are no strings.
            ValueError: for a label that no row has, and for a memory-mapped index.
        """
        self._check_changeable()
        wanted = checked_labels(labels)
        rows = self._table.rows_of(wanted)
        if missing := set(wanted) - set(self.labels.take(pa.array(rows)).to_pylist()):
            first = next(label for label in wanted if label in missing)
            raise ValueError(f"No row has the label {first!r}, nor {len(missing) - 1} others: nothing was removed.")
        self._remove_rows(rows)
        self._note_edit()

    def upsert(self, embeddings: Embeddings, labels: Sequence[str], metadata: Metadata | None = None) -> None:
        """
        Puts rows in place of those that have their labels, metadata and all, and appends the others; all of them or,
        after an error, none. Row numbers may change, labels do not.

        Args:
            embeddings, metadata: as for [`add`].
            labels (`Sequence[str]`): all different.

        Raises:
            TypeError, ValueError: as [`add`], and for a label that is given twice.
        """
        wanted = checked_labels(labels)
        label, count = Counter(wanted).most_common(1)[0] if wanted else ("", 0)
        if count > 1:
            raise ValueError(f"The label {label!r} is given {count} times: which row is to stay?")
        replaced = self._table.rows_of(wanted)
        self.add(embeddings, wanted, metadata)
        self._remove_rows(replaced)
        self._note_edit()

    def compact(self) -> None:
        """
        Gives back the memory of removed rows, and sums anew what is kept of the whole gallery. Results stay the same.

        Raises:
            ValueError: for a memory-mapped index.
        """
        self._check_changeable()
        vectors = faiss.IndexFlatIP(self._faiss.d)
        vectors.add(own_vectors(self._faiss))
        self._faiss = vectors
        self._summarize()

    def _note_edit(self) -> None:
        if EDITED not in self.split_fingerprints:
            self.split_fingerprints.append(EDITED)

    def _summarize(self) -> None:
        """Makes anew what is kept of all rows together."""
