"""Exact maximum search for scores that are not inner products: bounds that are, and rounding that is accounted for.

The score of a text (kappa, mu, G) for an image z under the Power Spherical distribution is `kappa ln(1 + t) + G`,
`t = mu'z`. No inner product of finite width equals it, but the logarithm lies below its tangents: for every `t0 > -1`

    kappa ln(1 + t) + G  <=  kappa [ln(1 + t0) + (t - t0)/(1 + t0)] + G
                          =  <[eta, kappa, G], [z/(1 + t0), ln(1 + t0) - t0/(1 + t0), 1]>,

with equality at `t = t0`. The left vectors do not depend on `t0`: one index of d + 2 columns gives the texts of
largest bound for a tangent point chosen per query, and what it does not list scores below the smallest bound it lists.

**Rounding.** An inner product of n float32 products, summed in whatever order, differs from the exact one by at most
`gamma_n sum |v_i q_i|`, `gamma_n = n u/(1 - n u)`, `u = 2^-24` (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 3.1); the rounding of the entries of v and q themselves counts as a few more terms. Since `|G| <=
kappa` for either distribution (its slope is the mean of t, or of ln(1 + t), under it), the sum is at most
`kappa (1/(1 + t0) + |ln(1 + t0) - t0/(1 + t0)| + 1)`, which the entry of the query that meets kappa takes in.

**The clamp.** The pairwise score takes no cosine below `LOWEST_COSINE`. The bound at `t >= -1` is at least
`kappa (ln(1 + t0) - 1) + G`, which is above the clamped score for every `t0` allowed here.
"""

import torch


UNIT_ROUNDOFF = 2.0**-24  # of float32

# Tangent points are kept away from the pole at -1; a result that close to opposite is no result.
MIN_TANGENT = -0.5

# Rounding of stored entries, of query entries and of the last operations, counted as further terms of the sum.
EXTRA_TERMS = 8


def relative_rounding(width: int) -> float:
    """`gamma_n` of a float32 inner product of `width` entries, each of them rounded: see the module's text."""
    terms = width + EXTRA_TERMS
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)


def tangent_queries(images: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """
    Queries whose float32 inner product with `[eta, kappa, G]` is at least the Power Spherical score, in spite of all
    rounding.

    Args:
        images (`torch.DoubleTensor` of shape `(queries, dim)`): unit vectors.
        tangents (`torch.DoubleTensor` of shape `(queries,)`): cosines where the bounds touch; the closer to those of
            the last results wanted, the sooner others are ruled out. Smaller ones than `MIN_TANGENT` are raised to it,
            which costs no exactness.

    Returns:
        `torch.FloatTensor` of shape `(queries, dim + 2)`.
    """
    tangents = tangents.clamp(min=MIN_TANGENT)[:, None]
    slope = 1 / (1 + tangents)
    intercept = torch.log1p(tangents) - tangents * slope
    slack = relative_rounding(images.shape[1] + 2) * (slope + intercept.abs() + 1)
    return torch.cat([images * slope, intercept + slack, torch.ones_like(slope)], dim=1).float()
