"""The contrastive loss of log-likelihood logits in both directions, value and gradients, by tiles of rows.

Image i is a unit vector z_i, text j the linear form

    L_ij = <z_i, v_j> + b_j                      (von Mises-Fisher, cosine), or
    L_ij = s_j ln(1 + <z_i, v_j>) + b_j          (Power Spherical),

with the temperature already inside v, s and b. Of the matrix L only tiles of rows exist at a time. In the forward pass
the log-sum-exp of a row is complete within its tile, while those of the columns are merged over tiles, and over
processes, as (maximum, sum of exponentials). With P_ij = exp(L_ij - lse_i) + exp(L_ij - lse_j) - 2 [i = j], the
gradient of the sum of both losses of all pairs is P, and the backward pass turns each tile of P into its share of the
gradients by two matrix products.

A small matrix of logits is kept for the backward pass, a large one is computed again, tile by tile: then the memory
grows with the batch and not with its square.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


# In float32 the cosine of an image opposite to the text rounds to -1 and below, where ln(1 + cosine) is -inf or NaN.
# Pairwise Power Spherical scores are therefore bounded from below by kappa * ln(1e-6) = -13.8 kappa (zero gradient
# beyond), a bound that is reached only within 0.08 degrees of the antipode.
LOWEST_COSINE = 1e-6 - 1.0

# On a CPU a tile that fits the cache makes the passes over it cheap; an accelerator needs tiles that fill it.
CPU_TILE_BYTES = 2**22
ACCELERATOR_TILE_BYTES = 2**27
LARGEST_KEPT_BYTES = 2**26


def rows_in_a_tile(num_columns: int, element_size: int, device: torch.device) -> int:
    """Rows of a tile of logits: as many as fit the device's budget, but enough for an efficient matrix product."""
    budget = CPU_TILE_BYTES if device.type == "cpu" else ACCELERATOR_TILE_BYTES
    return max(64, budget // (num_columns * element_size))


class GatherRows(torch.autograd.Function):
    """All processes' rows, in rank order; the backward pass sums every process's gradient of the own rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.num_rows = rows.shape[0]
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.num_rows :][: ctx.num_rows]


def check_equal_batches(num_rows: int, device: torch.device) -> None:
    """Raises `ValueError` unless every process has `num_rows` pairs in its batch."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([num_rows], device=device))
    if len({int(size) for size in sizes}) > 1:
        raise ValueError(
            f"Every process needs the same number of pairs in a batch, got {[int(size) for size in sizes]}: "
            "train with dataloader_drop_last=True."
        )


class ContrastiveLoss(torch.autograd.Function):
    """
    Mean over this process's pairs of -ln softmax of their logits within their row and within their column, halved.

    Args:
        images (`torch.Tensor` of shape `(rows, dim)`): the unit vectors of this process.
        vectors (`torch.Tensor` of shape `(columns, dim)`): v of the texts of all processes.
        scales (`torch.Tensor` of shape `(columns,)`, *optional*): s; without it the logits are linear.
        biases (`torch.Tensor` of shape `(columns,)`, *optional*): b; zero by default.
        ids (`torch.Tensor` of shape `(columns,)`, *optional*):
            The image that each text belongs to. Logits of other texts of a row's image leave both denominators.
        offset (`int`): the column of the first row's own text; the others follow.
        tile_size (`int`, *optional*): rows at a time; by default chosen from the batch, and all kept if they are few.
        distributed (`bool`): whether rows are spread over processes, so that columns are merged across them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        vectors: torch.Tensor,
        scales: torch.Tensor | None,
        biases: torch.Tensor | None,
        ids: torch.Tensor | None,
        offset: int,
        tile_size: int | None,
        distributed: bool,
    ) -> torch.Tensor:
        num_rows, num_columns = len(images), len(vectors)
        ctx.offset = offset
        ctx.tile_size = tile_size or rows_in_a_tile(num_columns, images.element_size(), images.device)
        keeps = tile_size is None and num_rows * num_columns * images.element_size() <= LARGEST_KEPT_BYTES
        kept = images.new_empty(num_rows, num_columns) if keeps else None

        repeated = _repeated(ids)
        row_lse, own = images.new_empty(num_rows), images.new_empty(num_rows)
        column_max = images.new_full((num_columns,), -torch.inf)
        column_sum = images.new_zeros(num_columns)
        for rows in _tiles(num_rows, ctx.tile_size):
            products = _products(images[rows], vectors, scales, None if kept is None else kept[rows])
            logits = _logits(products, scales, biases)
            own[rows] = logits.diagonal(offset + rows.start)
            _mask(logits, ids, repeated, offset + rows.start)
            maximum = logits.amax(dim=1)
            row_lse[rows] = maximum + (logits - maximum[:, None]).exp_().sum(dim=1).log_()
            maximum = torch.maximum(column_max, logits.amax(dim=0))
            # A column may still be without any logit, its only ones so far masked: its maximum is then -inf.
            reference = maximum.clamp(min=torch.finfo(maximum.dtype).min)
            column_sum.mul_((column_max - reference).exp_()).add_((logits - reference).exp_().sum(dim=0))
            column_max = maximum
        if distributed:
            maximum = column_max.clone()
            dist.all_reduce(maximum, dist.ReduceOp.MAX)
            column_sum.mul_((column_max - maximum).exp_())
            dist.all_reduce(column_sum)
            column_max = maximum
        column_lse = column_max + column_sum.log_()

        ctx.save_for_backward(images, vectors, scales, biases, ids, repeated, row_lse, column_lse, kept)
        return ((row_lse + column_lse[offset : offset + num_rows]) / 2 - own).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        images, vectors, scales, biases, ids, repeated, row_lse, column_lse, kept = ctx.saved_tensors
        # Cached image features are constants: their product is left out.
        image_gradient = torch.empty_like(images) if ctx.needs_input_grad[0] else None
        vector_gradient = torch.zeros_like(vectors)
        scale_gradient = None if scales is None else torch.zeros_like(scales)
        bias_gradient = None if biases is None else torch.zeros_like(biases)
        weight = gradient / (2 * len(images))
        for rows in _tiles(len(images), ctx.tile_size):
            tile, start = images[rows], ctx.offset + rows.start
            products = _products(tile, vectors, scales) if kept is None else kept[rows]
            logits = _logits(products, scales, biases)
            _mask(logits, ids, repeated, start)
            share = (logits - row_lse[rows, None]).exp_()
            share += logits.sub_(column_lse).exp_()
            share.diagonal(start).sub_(2)
            share *= weight
            if bias_gradient is not None:
                bias_gradient += share.sum(dim=0)
            if scale_gradient is not None:
                scale_gradient += torch.linalg.vecdot(share, products.log1p(), dim=0)
                share.mul_(scales).div_(products + 1).masked_fill_(products <= LOWEST_COSINE, 0.0)
            if image_gradient is not None:
                torch.mm(share, vectors, out=image_gradient[rows])
            vector_gradient.addmm_(share.T, tile)
        return image_gradient, vector_gradient, scale_gradient, bias_gradient, None, None, None, None


def _tiles(num_rows: int, tile_size: int) -> Iterator[slice]:
    for start in range(0, num_rows, tile_size):
        yield slice(start, min(start + tile_size, num_rows))


def _products(
    tile: torch.Tensor, vectors: torch.Tensor, scales: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """<z_i, v_j> of shape `(rows, columns)`, as cosines bounded from below where a logarithm follows."""
    products = torch.mm(tile, vectors.T, out=out)
    return products if scales is None else products.clamp_(min=LOWEST_COSINE)


def _logits(products: torch.Tensor, scales: torch.Tensor | None, biases: torch.Tensor | None) -> torch.Tensor:
    """The logits of a tile, in memory of their own."""
    if scales is not None:
        products = products.log1p().mul_(scales)
        return products if biases is None else products.add_(biases)
    return products.clone() if biases is None else products + biases


def _repeated(ids: torch.Tensor | None) -> torch.Tensor | None:
    """Which ids stand more than once; `None` where none does."""
    if ids is None:
        return None
    _, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    repeated = counts[inverse] > 1
    return repeated if repeated.any() else None


def _mask(logits: torch.Tensor, ids: torch.Tensor | None, repeated: torch.Tensor | None, start: int) -> None:
    """
    Sets the logits of other texts of a row's image to -inf; the own text of the first row is in column `start`. Only
    rows whose id stands more than once are compared, in large data a few in a hundred.
    """
    if ids is None or repeated is None:
        return
    rows = repeated[start : start + len(logits)].nonzero()[:, 0]
    same = ids[start + rows, None] == ids
    same[torch.arange(len(rows), device=rows.device), start + rows] = False
    logits[rows] = logits[rows].masked_fill_(same, -torch.inf)
