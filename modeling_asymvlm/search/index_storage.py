"""What text and image indexes share: flat FAISS storage with labels, its growth and its files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.modeling_asymvlm import AsymVLMModel
from ..model.objective import Likelihood
from ..store.embedding_store import EmbeddingSplit
from .faiss_access import changeable, lend_vectors, own_vectors
from .index_files import part_of_split, read_index, split_fingerprint, write_index
from .row_table import Metadata, RowTable, checked_metadata


Embeddings = torch.Tensor | npt.ArrayLike


class FlatIndex(ABC):
    """Storage of [`~text_index.TextIndex`] and [`~image_index.ImageIndex`], which say what a row is."""

    kind: ClassVar[str]

    def __init__(self, dim: int, *, distribution: str, normalizer: str = "exact", logit_scale: float = 1.0):
        self.law = Likelihood(distribution, normalizer)
        if dim < 2:
            raise ValueError(f"dim is {dim}, but must be at least 2: it is the width of the embeddings.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"logit_scale is {logit_scale}, but must be positive and finite.")
        self.dim = dim
        self.logit_scale = float(logit_scale)
        self.model_fingerprint: str | None = None
        self.split_fingerprints: list[str] = []
        self._table = RowTable.empty()
        self.memory_mapped = False
        self._faiss = faiss.IndexFlatIP(self.dim + self._extra_columns())

    @classmethod
    def from_split(
        cls,
        model: AsymVLMModel,
        split: EmbeddingSplit,
        *,
        batch_size: int = 4096,
        metadata: Metadata | None = None,
        **options: Any,
    ) -> Self:
        """
        An index of a split of an `EmbeddingStore`, with the distribution and the temperature of the model.

        Args:
            model (`AsymVLMModel`): in evaluation mode, on any device.
            split (`EmbeddingSplit`): its captions or images are indexed.
            batch_size (`int`, *optional*, defaults to 4096): rows at a time.
            metadata (`dict` of columns or `pa.Table`, *optional*): of its captions or images, as for [`add`].
            options: further arguments of the class, such as `calibration` of an image index.
        """
        index = cls(split.dim, **asdict(model.config.law), logit_scale=model.logit_scale.item(), **options)
        index.model_fingerprint = head_fingerprint(model)
        index.add_split(model, split, batch_size=batch_size, metadata=metadata)
        return index

    @torch.no_grad()
    def add_split(
        self,
        model: AsymVLMModel,
        split: EmbeddingSplit,
        *,
        batch_size: int = 4096,
        metadata: Metadata | None = None,
    ) -> None:
        """
        Appends a split, with metadata of its captions or images, all of it or, after an error, none.

        Raises:
            ValueError: if the index was built by another model or from arrays, or its memory is mapped.
        """
        self._check_model(model)
        labels, features = part_of_split(split, self.kind)
        columns = checked_metadata(metadata, len(features))
        before = len(self)
        try:
            for start in range(0, len(features), batch_size):
                rows = slice(start, start + batch_size)
                embeddings = self._embed(model, features[rows].to(model.device))
                self.add(embeddings, labels[rows], columns.slice(start, batch_size))
        except BaseException:
            self._truncate(before)
            raise
        self.split_fingerprints.append(split_fingerprint(split, self.kind))

    def __len__(self) -> int:
        return self._faiss.ntotal

    @property
    def labels(self) -> pa.ChunkedArray:
        """Captions or image ids, one a row, strings."""
        return self._table.labels

    @property
    def vectors(self) -> np.ndarray:
        """
        The float32 vectors of shape `(rows, width)`, read-only and not copied: with inner product as the metric they
        can be searched by any library. See [`~TextIndex.query_vectors`].

        The array outlives the index and never changes. To let go of it before adding rows saves memory: an index that
        grows while such an array is in use takes a copy of the vectors first.
        """
        return lend_vectors(self._faiss)

    def build_approximate(self, factory: str) -> faiss.Index:
        """
        An approximate FAISS index of the same vectors, to be given to `search(..., approximate=)`.

        Args:
            factory (`str`): as for `faiss.index_factory`, for instance `"HNSW32"` or `"IVF1024,Flat"`.
        """
        approximate = faiss.index_factory(self._faiss.d, factory, faiss.METRIC_INNER_PRODUCT)
        approximate.train(self.vectors)
        approximate.add(self.vectors)
        return approximate

    def save(self, path: str | Path) -> None:
        """
        Writes a folder without pickle, see `index_files`. An index that was saved at `path` before is replaced.

        Raises:
            FileExistsError: if anything but an index or an empty folder is at `path`.
        """
        manifest = {**self._settings(), "num_rows": len(self), "splits": self.split_fingerprints}
        write_index(Path(path), manifest, self._faiss, self._table.table, self._parameters())

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: AsymVLMModel | None = None,
        splits: Sequence[EmbeddingSplit] | None = None,
        memory_map: bool = False,
    ) -> Self:
        """
        Reads a saved index.

        Args:
            path (`str` or `Path`): the folder.
            model (`AsymVLMModel`, *optional*): the model that the queries will come from, to be compared with the one
                that built the index.
            splits (`Sequence[EmbeddingSplit]`, *optional*): what was indexed, in order, to be compared with what is in
                the index; reads all of their features.
            memory_map (`bool`, *optional*, defaults to `False`): leave the vectors on disk, to be read as they are
                needed, for indexes beyond memory. Results are the same; such an index cannot grow.

        Raises:
            FileNotFoundError: if there is no index at `path`.
            ValueError: if the index is damaged, of another kind, of another model, or of other splits.
        """
        saved = read_index(Path(path), cls.kind, memory_map=memory_map)
        manifest, vectors = saved.manifest, saved.vectors
        index = cls._from_settings(manifest)
        if vectors.d != index._faiss.d:
            raise ValueError(
                f"The vectors of {str(path)!r} are {vectors.d} wide, not {index._faiss.d}: save it again."
            )
        index._faiss, index._table, index.memory_mapped = vectors, RowTable(saved.table), memory_map
        index.model_fingerprint, index.split_fingerprints = manifest["model"], manifest["splits"]
        index._set_parameters(saved.parameters)
        if model is not None:
            index._check_model(model)
        if splits is not None and [split_fingerprint(split, cls.kind) for split in splits] != manifest["splits"]:
            raise ValueError(
                f"The index at {str(path)!r} was built from other features or labels than these splits hold: the "
                "store has changed since, or the splits differ in number or order. Build the index again."
            )
        return index

    def _settings(self) -> dict[str, Any]:
        """What [`_from_settings`] takes, and the fingerprint of the model's head."""
        return {
            "kind": self.kind,
            "dim": self.dim,
            **asdict(self.law),
            "logit_scale": self.logit_scale,
            "model": self.model_fingerprint,
            **self._more_settings(),
        }

    def _blank(self) -> Self:
        """An empty index with the same settings."""
        index = self._from_settings(self._settings())
        index.model_fingerprint = self.model_fingerprint
        return index

    @classmethod
    def _from_settings(cls, manifest: dict[str, Any]) -> Self:
        """An empty index with the settings of a saved one."""
        return cls(**{name: manifest[name] for name in ("dim", "distribution", "normalizer", "logit_scale")})

    def _more_settings(self) -> dict[str, Any]:
        """What is saved of the settings besides those that all indexes have."""
        return {}

    def _check_model(self, model: AsymVLMModel) -> None:
        if self.model_fingerprint != head_fingerprint(model):
            built_by = "another model" if self.model_fingerprint else "no model but from arrays"
            raise ValueError(
                f"This index was built by {built_by}: its vectors and scores do not belong to this one. Build it with "
                f"{type(self).__name__}.from_split(model, split)."
            )

    def _check_changeable(self) -> None:
        if self.memory_mapped:
            raise ValueError("A memory-mapped index cannot change: load it with memory_map=False for that.")

    def _append(self, vectors: np.ndarray, labels: Sequence[str] | None, metadata: Metadata | None) -> None:
        self._check_changeable()
        self._table = self._table.plus(len(vectors), labels, metadata)
        self._faiss = changeable(self._faiss)
        self._faiss.add(vectors)

    def _truncate(self, num_rows: int) -> None:
        self._remove_rows(np.arange(num_rows, len(self)))

    def _remove_rows(self, rows: np.ndarray) -> None:
        """Rows of these numbers, ascending, are overwritten by the last others, in the order of these."""
        if not len(rows):
            return
        num_kept = len(self) - len(rows)
        order, gaps = np.arange(num_kept), rows[rows < num_kept]
        order[gaps] = np.setdiff1d(np.arange(num_kept, len(self)), rows, assume_unique=True)
        self._table = self._table.take(order)
        self._faiss = changeable(self._faiss)
        vectors = own_vectors(self._faiss)
        vectors[gaps] = vectors[order[gaps]]
        self._faiss.remove_ids(faiss.IDSelectorRange(num_kept, len(self)))
        self._take_parameters(order)

    def _writable_vectors(self) -> np.ndarray:
        """What torch takes without a copy and without a warning; never written to."""
        return own_vectors(self._faiss)

    def _checked(self, embeddings: Embeddings, name: str) -> torch.Tensor:
        """float64 of shape `(rows, dim)`; values stay those of the narrower dtype."""
        tensor = torch.as_tensor(embeddings).detach().cpu()
        if tensor.ndim != 2 or tensor.shape[1] != self.dim or not len(tensor):
            raise ValueError(
                f"{name} must have shape (n, {self.dim}) with n at least 1, got {tuple(tensor.shape)}. An empty query "
                "has no results; another width is that of another model."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, got {tensor.dtype}.")
        broken = (~torch.isfinite(tensor).all(dim=1)).nonzero()[:, 0]
        if len(broken):
            raise ValueError(
                f"{name} are NaN or infinite in {len(broken)} of {len(tensor)} rows, the first is row "
                f"{int(broken[0])}. Make these embeddings again."
            )
        return tensor.double()

    @abstractmethod
    def _extra_columns(self) -> int:
        """Columns of the vectors beyond the embedding."""

    @abstractmethod
    def _embed(self, model: AsymVLMModel, features: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def add(
        self, embeddings: Embeddings, labels: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> None:
        """
        Appends rows with their labels, by default their numbers, and columns of metadata; all of them or, after an
        error, none.
        """

    @abstractmethod
    def _parameters(self) -> dict[str, np.ndarray]:
        """What is saved of every row beside its vector."""

    @abstractmethod
    def _row_columns(self) -> dict[str, np.ndarray]:
        """What scores need of every row beside its embedding, by name, each of shape `(rows,)`."""

    @abstractmethod
    def _set_columns(self, columns: dict[str, np.ndarray], extent: dict[str, tuple[float, float]]) -> None:
        """[`_row_columns`] of the rows of this index, and the least and greatest of the rows that it is a part of."""

    @abstractmethod
    def _take_parameters(self, rows: np.ndarray) -> None:
        """Keeps the parameters of these rows alone, in this order."""

    @abstractmethod
    def _set_parameters(self, parameters: dict[str, np.ndarray]) -> None: ...
