"""One pass over a gallery in tiles: the largest scores of every query and the log-sum-exp of all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch


ROWS_IN_TILE = 8192  # with 256 queries, 8 MiB of scores at a time


class Tile(NamedTuple):
    """
    A tile of a gallery, all float32 of shape `(num_queries, rows)`.

    Attributes:
        keys (`torch.FloatTensor`): what ranks the rows.
        scores (`torch.FloatTensor`): their scores; may be the same tensor.
        cosines (`torch.FloatTensor`, *optional*): with the mean directions of texts.
    """

    keys: torch.Tensor
    scores: torch.Tensor
    cosines: torch.Tensor | None = None


class GalleryScan(NamedTuple):
    """
    What a scan found.

    Attributes:
        rows (`torch.LongTensor` of shape `(num_queries, count)`): those of largest key, in no stated order.
        keys (`torch.FloatTensor` of shape `(num_queries, count)`): their keys.
        log_sums (`torch.DoubleTensor` of shape `(num_queries,)`):
            `ln sum exp(tau score)` over all rows; -inf where it was not asked for.
        closest (`torch.LongTensor` of shape `(num_queries, num_closest)`): rows of largest float32 cosine.
    """

    rows: torch.Tensor
    keys: torch.Tensor
    log_sums: torch.Tensor
    closest: torch.Tensor


def scan_gallery(
    tile: Callable[[int, int], Tile],
    num_queries: int,
    num_rows: int,
    *,
    count: int,
    logit_scale: float | None = None,
    allowed: torch.Tensor | None = None,
    num_closest: int = 0,
) -> GalleryScan:
    """
    Scans all rows once.

    Args:
        tile (`Callable`): `(start, stop)` of gallery rows to their [`Tile`].
        num_queries, num_rows (`int`): sizes.
        count (`int`): how many rows to list per query; at most `num_rows`, or the number of allowed ones.
        logit_scale (`float`, *optional*): tau; without it no log-sum-exp is taken.
        allowed (`torch.BoolTensor` of shape `(num_rows,)`, *optional*): the rows that may be listed. All rows take
            part in the log-sum-exp.
        num_closest (`int`, *optional*, defaults to 0):
            How many rows of largest cosine to find, of all rows, in tiles that have them.
    """
    top_keys, top_rows = _nothing(num_queries, count)
    top_cosines, closest = _nothing(num_queries, num_closest)
    log_sums = torch.full((num_queries,), -torch.inf, dtype=torch.float64)
    for start in range(0, num_rows, ROWS_IN_TILE):
        stop = min(start + ROWS_IN_TILE, num_rows)
        keys, scores, cosines = tile(start, stop)
        if logit_scale is not None:
            log_sums = torch.logaddexp(log_sums, torch.logsumexp(logit_scale * scores, dim=1).double())
        if allowed is not None:
            keys = keys.masked_fill(~allowed[start:stop], -torch.inf)
        if count:
            top_keys, top_rows = _merge(top_keys, top_rows, keys, start)
        if num_closest and cosines is not None:
            top_cosines, closest = _merge(top_cosines, closest, cosines, start)
    return GalleryScan(top_rows, top_keys, log_sums, closest)


def _nothing(num_queries: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and rows to merge others with."""
    shape = (num_queries, count)
    return torch.full(shape, -torch.inf), torch.zeros(shape, dtype=torch.int64)


def _merge(
    top_keys: torch.Tensor, top_rows: torch.Tensor, keys: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The largest keys of those held and those of a tile. After the first tiles few exceed the smallest one held: picking
    these out by a comparison is several times faster than sorting the tile.
    """
    query, column = (keys > top_keys.amin(dim=1, keepdim=True)).nonzero(as_tuple=True)  # by query, ascending
    if not len(query):
        return top_keys, top_rows
    new_per_query = torch.bincount(query, minlength=len(keys))
    place = torch.arange(len(query)) - (new_per_query.cumsum(0) - new_per_query)[query]
    shape = (len(keys), int(new_per_query.max()))
    new_keys, new_rows = torch.full(shape, -torch.inf), torch.zeros(shape, dtype=torch.int64)
    new_keys[query, place], new_rows[query, place] = keys[query, column], column + start
    count = top_keys.shape[1]
    top_keys, chosen = torch.cat([top_keys, new_keys], dim=1).topk(count, dim=1, sorted=False)
    return top_keys, torch.cat([top_rows, new_rows], dim=1).gather(1, chosen)
