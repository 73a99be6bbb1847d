"""One pass over a gallery in tiles: the largest scores of every query and the log-sum-exp of all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch


ROWS_IN_TILE = 8192  # with 256 queries, 8 MiB of scores at a time


class GalleryScan(NamedTuple):
    """
    What a scan found.

    Attributes:
        rows (`torch.LongTensor` of shape `(num_queries, count)`): those of largest key, in no stated order.
        keys (`torch.FloatTensor` of shape `(num_queries, count)`): their keys.
        log_sums (`torch.DoubleTensor` of shape `(num_queries,)`):
            `ln sum exp(tau score)` over all rows; -inf where it was not asked for.
    """

    rows: torch.Tensor
    keys: torch.Tensor
    log_sums: torch.Tensor


def scan_gallery(
    tile: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]],
    num_queries: int,
    num_rows: int,
    *,
    count: int,
    logit_scale: float | None = None,
    allowed: torch.Tensor | None = None,
) -> GalleryScan:
    """
    Scans all rows once.

    Args:
        tile (`Callable`): `(start, stop)` of gallery rows to the keys that rank them and their scores, each float32 of
            shape `(num_queries, stop - start)`; they may be one tensor.
        num_queries, num_rows (`int`): sizes.
        count (`int`): how many rows to list per query; at most `num_rows`, or the number of allowed ones.
        logit_scale (`float`, *optional*): tau; without it no log-sum-exp is taken.
        allowed (`torch.BoolTensor` of shape `(num_rows,)`, *optional*): the rows that may be listed. All rows take
            part in the log-sum-exp.
    """
    top_keys = torch.full((num_queries, count), -torch.inf)
    top_rows = torch.zeros((num_queries, count), dtype=torch.int64)
    log_sums = torch.full((num_queries,), -torch.inf, dtype=torch.float64)
    for start in range(0, num_rows, ROWS_IN_TILE):
        stop = min(start + ROWS_IN_TILE, num_rows)
        keys, scores = tile(start, stop)
        if logit_scale is not None:
            log_sums = torch.logaddexp(log_sums, torch.logsumexp(logit_scale * scores, dim=1).double())
        if allowed is not None:
            keys = keys.masked_fill(~allowed[start:stop], -torch.inf)
        if count:
            top_keys, top_rows = _merge(top_keys, top_rows, keys, start)
    return GalleryScan(top_rows, top_keys, log_sums)


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
