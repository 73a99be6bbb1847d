"""Scores of all captions with all images, block by block."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import as_array


MAX_TILE_ROWS = 1024
MAX_TILE_SCORES = 2**24  # 64 MB in float32


class EmbeddingScores:
    """
    Scores of embeddings, computed block by block on the device of the images. Metrics that are given one score every
    pair once, where for a function of rows some do so twice.

    Args:
        text_embeds (shape `(texts, dim)`): array, tensor, or anything that gives such rows for a slice or a list.
        image_embeds (shape `(images, dim)`): the same; held whole on `device`.
        score (`Callable`, *optional*): takes tensors of texts `(rows, dim)` and images `(columns, dim)` and returns
            their scores `(rows, columns)`, each of which depends on its own pair alone. Default: inner products.
        device (*optional*): where to compute; by default where the image embeddings are.
    """

    def __init__(
        self,
        text_embeds: Any,
        image_embeds: Any,
        score: Callable[[Any, Any], Any] | None = None,
        *,
        device: Any = None,
    ):
        import torch

        self.text_embeds = _sliceable(text_embeds)
        images = _sliceable(image_embeds)[:]
        self.device = torch.device(device) if device is not None else images.device
        self.image_embeds = images.to(self.device)
        self.score = score or _inner_products
        self.shape = (len(self.text_embeds), len(self.image_embeds))

    def __call__(self, rows: slice) -> Any:
        return self._block(rows, self.image_embeds)

    def of_own_images(self, text_image_index: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Score of each caption with its own image, up to rounding. Computes few other pairs: captions by image."""
        order = np.argsort(text_image_index, kind="stable")
        parts = []
        for start in range(0, len(order), 256):
            rows = order[start : start + 256]
            images, column = np.unique(text_image_index[rows], return_inverse=True)
            block = as_array(self._block(rows.tolist(), self.image_embeds[images.tolist()]))
            parts.append(block[np.arange(len(rows)), column])
        own = np.concatenate(parts)
        scores = np.empty_like(own)
        scores[order] = own
        return scores

    def _block(self, rows: Any, images: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.score(self.text_embeds[rows].to(self.device), images)


Scores = npt.ArrayLike | Callable[[slice], npt.ArrayLike] | EmbeddingScores


def _sliceable(embeds: Any) -> Any:
    import torch

    if isinstance(embeds, (np.ndarray, list, tuple)):
        embeds = np.asarray(embeds)
        return torch.from_numpy(embeds if embeds.flags.writeable else embeds.copy())
    return embeds


def _inner_products(text_embeds: Any, image_embeds: Any) -> Any:
    import torch

    dtype = torch.promote_types(torch.promote_types(text_embeds.dtype, image_embeds.dtype), torch.float32)
    return text_embeds.to(dtype) @ image_embeds.to(dtype).T


def check_image_index(
    scores: Any, text_image_index: npt.ArrayLike, num_images: int | None
) -> tuple[npt.NDArray[np.int64], int]:
    """The image of each caption as int64, and the number of images. Raises `ValueError` where they do not fit."""
    index = as_array(text_image_index)
    if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "iu":
        raise ValueError(
            f"`text_image_index` has shape {index.shape} and dtype {index.dtype}; it must be a non-empty vector of "
            "integers. Give the image index of each caption."
        )
    num_images = check_shape(scores, len(index), num_images)
    if index.min() < 0 or index.max() >= num_images:
        raise ValueError(
            f"`text_image_index` runs from {index.min()} to {index.max()}; allowed is 0 to {num_images - 1}. "
            "Number the images in the order of the columns of `scores`."
        )
    return index.astype(np.int64), num_images


def check_shape(scores: Any, num_texts: int, num_images: int | None) -> int:
    """The number of images. Raises `ValueError` where `scores` has another shape, or a function's is not known."""
    if not callable(scores) or isinstance(scores, EmbeddingScores):
        shape = scores.shape if isinstance(scores, EmbeddingScores) else tuple(np.shape(scores))
        if len(shape) != 2 or shape[0] != num_texts or num_images not in (None, shape[1]):
            raise ValueError(
                f"`scores` has shape {shape}; it must be ({num_texts}, {num_images or 'images'}): one row for each "
                "caption and one column for each image. Transpose an images × texts matrix."
            )
        return shape[1]
    if num_images is None:
        raise ValueError("`num_images` is None; where `scores` is a function it must be the number of its columns.")
    return num_images


def score_blocks(
    scores: Any, num_texts: int, num_images: int, tile_size: int | None
) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
    """
    The rows of each block and its scores. Blocks are at most 255 rows and about 2 MB, which stay in the processor's
    cache while they are looked at, however many rows are scored at a time.

    Raises:
        ValueError: if `tile_size` is below 1, or a block has another shape or is not floating-point.
    """
    if tile_size is None:
        tile_size = max(1, min(MAX_TILE_ROWS, MAX_TILE_SCORES // num_images))
    if tile_size < 1:
        raise ValueError(f"`tile_size` is {tile_size}; it must be at least 1. Give the number of text rows per block.")
    step = max(1, min(255, 2**19 // num_images))
    for start in range(0, num_texts, tile_size):
        rows = slice(start, min(start + tile_size, num_texts))
        block = as_array(scores(rows) if callable(scores) else scores[rows])
        if block.shape != (rows.stop - start, num_images) or block.dtype.kind != "f":
            raise ValueError(
                f"`scores` for rows {start} to {rows.stop - 1} have shape {block.shape} and dtype {block.dtype}; they "
                f"must be floating-point of shape ({rows.stop - start}, {num_images}). Convert the scores or correct "
                "`num_images`."
            )
        for first in range(0, len(block), step):
            part = block[first : first + step]
            yield slice(start + first, start + first + len(part)), part
