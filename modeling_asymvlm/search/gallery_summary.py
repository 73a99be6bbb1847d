"""What is kept of a whole gallery, so that no search has to look for it: moments of its images, range of evidence.

The mean and the deviation of the cosines of a text with all images follow from the sum m of the n unit vectors and the
sum M of their outer products: `mu'm/n`, and the root of `mu'M mu/n` less the square of the former.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F


ROWS_AT_A_TIME = 16_384
CONSISTENT = 1e-6  # relative, far above the rounding of the sums


@dataclass(frozen=True)
class GallerySummary:
    """
    Sums over the rows `[z, e]` of an index, float64.

    Attributes:
        num_images (`int`): rows that are counted.
        total (shape `(dim,)`): sum of the unit vectors.
        products (shape `(dim, dim)`): sum of their outer products.
        evidence_range (shape `(2,)`): no evidence lies outside.
        num_removed (`int`): rows that were taken away since the sums began, each with its rounding.
    """

    num_images: int
    total: np.ndarray
    products: np.ndarray
    evidence_range: np.ndarray
    num_removed: int = 0

    @classmethod
    def empty(cls, dim: int) -> Self:
        """Of no images; any evidence extends its range."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)), np.array([np.inf, -np.inf]))

    def plus(self, vectors: np.ndarray) -> Self:
        """With further rows `[z, e]`, float32 of shape `(rows, dim + 1)`."""
        return self._changed(vectors, sign=1)

    def minus(self, vectors: np.ndarray) -> Self:
        """Without some of its rows; the range of evidence stays."""
        if len(vectors) == self.num_images:
            return self.empty(len(self.total))
        return self._changed(vectors, sign=-1)

    def _changed(self, vectors: np.ndarray, sign: int) -> Self:
        total, products, extent = self.total.copy(), self.products.copy(), self.evidence_range
        for start in range(0, len(vectors), ROWS_AT_A_TIME):
            rows = vectors[start : start + ROWS_AT_A_TIME]
            units = F.normalize(torch.from_numpy(rows[:, :-1].astype(np.float64)), dim=-1)
            total += sign * units.sum(dim=0).numpy()
            products += sign * (units.T @ units).numpy()
            if sign > 0:
                evidence = rows[:, -1]
                extent = np.array([min(extent[0], evidence.min()), max(extent[1], evidence.max())])
        num_removed = self.num_removed + (len(vectors) if sign < 0 else 0)
        return type(self)(self.num_images + sign * len(vectors), total, products, extent, num_removed)

    @property
    def lowest_evidence(self) -> float:
        """No image has less."""
        return float(self.evidence_range[0])

    @property
    def largest_evidence(self) -> float:
        """No image has more by absolute value."""
        return float(np.abs(self.evidence_range).max())

    def mean_and_deviation(self, directions: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """
        Of the cosines with all images.

        Args:
            directions (`torch.DoubleTensor` of shape `(texts, dim)`): unit vectors, or 0 where there is no direction.

        Returns:
            Two float64 arrays of shape `(texts,)`.
        """
        units = directions.numpy()
        mean = units @ self.total / self.num_images
        squares = np.einsum("td,td->t", units @ self.products, units) / self.num_images
        return mean, np.sqrt(np.maximum(squares - mean**2, 0))

    def to_parameters(self) -> dict[str, np.ndarray]:
        """What [`from_parameters`] takes, beside the number of images."""
        return {"total": self.total, "products": self.products, "evidence_range": self.evidence_range}

    @classmethod
    def from_parameters(cls, num_images: int, dim: int, parameters: dict[str, np.ndarray]) -> Self:
        """Raises `ValueError` for what does not belong to vectors of this width."""
        shapes = {name: values.shape for name, values in parameters.items()}
        if shapes != {"total": (dim,), "products": (dim, dim), "evidence_range": (2,)}:
            raise ValueError(
                f"The moments of a gallery have shapes {shapes}, which are not those of vectors of width {dim}: build "
                "and save the index again."
            )
        summary = cls(num_images, parameters["total"], parameters["products"], parameters["evidence_range"])
        if not summary._is_consistent():
            raise ValueError(
                f"The moments of a gallery are not those of {num_images} unit vectors with finite evidence: build and "
                "save the index again."
            )
        return summary

    def _is_consistent(self) -> bool:
        """Every unit vector adds 1 to the trace, and their sum is no longer than they are many."""
        if not self.num_images:
            return not (self.total.any() or self.products.any())
        trace, length = np.trace(self.products), np.linalg.norm(self.total)
        lowest, highest = self.evidence_range
        counted = abs(trace / self.num_images - 1) < CONSISTENT and length < self.num_images * (1 + CONSISTENT)
        return bool(counted and np.isfinite(self.products).all() and -np.inf < lowest <= highest < np.inf)
