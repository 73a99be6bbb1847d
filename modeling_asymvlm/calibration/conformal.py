"""Retrieval with a guarantee: sets that contain a right answer, and answers whose error rate is bounded.

Nothing is assumed of the model, only that calibration and later queries are exchangeable: a good model gives small
sets and many answers, a poor one large sets and few, both keep the promise.

**Sets** are split-conformal (Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World"): all results
whose conformity is at least a threshold, which the calibration queries set by the conformity of their best right
answer. With a true posterior as conformity, and one right answer a query, no sets of their coverage are smaller on
average (Sadinle, Lei & Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error levels", JASA).
Given n calibration queries without ties, the coverage of later ones is Beta(m, n + 1 - m)-distributed with
m = ceil((1 - alpha)(n + 1)) (Vovk 2012, "Conditional validity of inductive conformal predictors"), of mean m/(n + 1).

**By stratum** of uncertainty (Mondrian; Vovk et al. 2005, section 4.5) every stratum has its own threshold and its own
guarantee, so that vague queries do not live on the coverage of specific ones.

**Dependent queries**, as the captions of one image, are not exchangeable one by one. With `groups` each image counts
once, its queries share its weight, and the promise is for a random query of a new image (Lee, Barber & Willett 2023,
"Distribution-free inference with hierarchical data", arXiv 2306.06342). Split calibration and test data by image.

**Answers** are given where a confidence exceeds a threshold (selective classification; Geifman & El-Yaniv 2017,
"Selective classification for deep neural networks", NeurIPS), chosen by exact binomial tests corrected for their
number (Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..utils.extras import require


require(__name__, "scipy")

from scipy import stats  # noqa: E402


# Smallest distance of a sum of weights from 1 - alpha that is not taken for rounding.
TOLERANCE = 1e-9

NUM_THRESHOLDS = 20  # that a selective calibration tests


class SetSizes(NamedTuple):
    """
    The sets of queries, which unpack as `sizes, abstained`.

    Attributes:
        sizes (int64, shape `(queries,)`):
            That many first results are the set; 0 where not even the best conforms.
        abstained (bool, shape `(queries,)`):
            The set reaches beyond the results that were listed, so that these alone carry no guarantee.
    """

    sizes: np.ndarray
    abstained: np.ndarray


@dataclass(frozen=True)
class ConformalSets:
    """
    Thresholds of conformity by stratum of uncertainty; made by [`~ConformalSets.calibrate`].

    Attributes:
        alpha (`float`): bound on the probability that a set contains no right answer.
        thresholds (float64, shape `(strata,)`): smallest conformity of a member.
        edges (float64, shape `(strata - 1,)`): a query of uncertainty u is in stratum number `sum(u >= edges)`.
        num_calibration (int64, shape `(strata,)`): calibration queries, or groups, of each stratum.
    """

    alpha: float
    thresholds: np.ndarray
    edges: np.ndarray
    num_calibration: np.ndarray

    @classmethod
    def calibrate(
        cls,
        conformity: npt.ArrayLike,
        alpha: float,
        *,
        groups: npt.ArrayLike | None = None,
        uncertainty: npt.ArrayLike | None = None,
        edges: Sequence[float] = (),
    ) -> Self:
        """
        Args:
            conformity (shape `(queries,)`):
                For each calibration query, the conformity of its best right answer: higher conforms better, in any
                unit; [`~retrieval.TextIndex.log_posterior`] gives the recommended one.
            alpha (`float`): in (0, 1).
            groups (shape `(queries,)`, *optional*): identity of each query's image, where some share one.
            uncertainty (shape `(queries,)`, *optional*): needed with `edges`.
            edges (`Sequence[float]`, *optional*):
                Ascending borders of the strata, fixed without looking at the calibration queries, as quantiles of the
                training captions' uncertainty; none for the marginal guarantee alone.

        Raises:
            ValueError: for NaN, shapes that disagree, `alpha` outside (0, 1), edges that do not ascend, and strata
                with fewer calibration queries (or groups) than `ceil(1/alpha) - 1`, the least that can promise
                anything.
        """
        values = _vector(conformity, "conformity")
        if not 0 < alpha < 1:
            raise ValueError(
                f"alpha is {alpha}, but must lie between 0 and 1: it is the share of sets allowed to miss."
            )
        borders = np.asarray(edges, np.float64)
        if np.any(np.diff(borders) <= 0) or not np.isfinite(borders).all():
            raise ValueError(f"edges are {borders.tolist()}, but must be finite and ascend.")
        strata = _strata(uncertainty, borders, len(values))
        group_of = np.arange(len(values)) if groups is None else _codes(groups, len(values))
        thresholds, sizes = [], []
        for stratum in range(len(borders) + 1):
            members = strata == stratum
            size = len(np.unique(group_of[members]))
            needed = math.ceil(1 / alpha - 1 - TOLERANCE)
            if size < needed:
                where = f" in stratum {stratum} of uncertainty" if len(borders) else ""
                raise ValueError(
                    f"{size} independent calibration queries{where} cannot promise a coverage of {1 - alpha:g}: at "
                    f"least {needed} are needed. Calibrate with more, raise alpha, or use fewer strata."
                )
            thresholds.append(_threshold(values[members], group_of[members], alpha))
            sizes.append(size)
        return cls(alpha, np.array(thresholds), borders, np.array(sizes))

    def sizes(
        self, conformity: npt.ArrayLike, uncertainty: npt.ArrayLike | None = None, *, gallery_size: int
    ) -> SetSizes:
        """
        The sets of new queries, as numbers of leading results.

        Args:
            conformity (shape `(queries, k)`): of the results of a search, best first.
            uncertainty (shape `(queries,)`, *optional*): of the queries, where there are strata.
            gallery_size (`int`): rows of the index, of which the results are the first k.

        Returns:
            [`SetSizes`]. A set contains a right answer, or the query is an abstention, with probability at least
            `1 - alpha`.
        """
        values = np.asarray(conformity, np.float64)
        if values.ndim != 2 or np.isnan(values).any():
            raise ValueError(f"conformity must have shape (queries, k) and no NaN, got shape {values.shape}.")
        thresholds = self.thresholds[_strata(uncertainty, self.edges, len(values))]
        sizes = np.count_nonzero(values >= thresholds[:, None], axis=1)
        return SetSizes(sizes, abstained=(sizes == values.shape[1]) & (sizes < gallery_size))


@dataclass(frozen=True)
class SelectiveAnswers:
    """
    A threshold of confidence above which answers are given; made by [`~SelectiveAnswers.calibrate`].

    Attributes:
        threshold (`float`): answer where the confidence is above it; infinite if no threshold passed: never answer.
        target_error (`float`): bound on the share of wrong answers among those given.
        error_probability (`float`): of the calibration queries being so lucky that the bound does not hold.
        num_answered, num_wrong (`int`): calibration queries above the threshold, and those wrongly answered.
    """

    threshold: float
    target_error: float
    error_probability: float
    num_answered: int
    num_wrong: int

    @classmethod
    def calibrate(
        cls,
        confidence: npt.ArrayLike,
        correct: npt.ArrayLike,
        *,
        target_error: float,
        error_probability: float = 0.05,
        groups: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> Self:
        """
        The lowest threshold of confidence, out of 20 at equal shares of the queries, whose error rate among answered
        queries is at most `target_error`, except with probability `error_probability` over the calibration queries.

        Given a threshold at the (n+1)-th highest confidence, the n queries above it are independent draws of answered
        queries, so that their errors are binomial. Each threshold is tested at `error_probability / 20`.

        Args:
            confidence (shape `(queries,)`): of the first result, for instance its posterior, or -1/kappa.
            correct (shape `(queries,)`): whether the first result is right.
            target_error (`float`): in (0, 1).
            error_probability (`float`, *optional*, defaults to 0.05): in (0, 1).
            groups (shape `(queries,)`, *optional*):
                Identity of each query's image, where some share one: one random query of each is used.
            seed (`int`, *optional*, defaults to 0): of the choice among the queries of a group.

        Raises:
            ValueError: for NaN, shapes that disagree, numbers outside (0, 1), and fewer queries (or groups) than would
                suffice if none of them were wrong.
        """
        values, right = _vector(confidence, "confidence"), np.asarray(correct)
        if right.shape != values.shape or not np.isin(right, (0, 1)).all():
            raise ValueError(f"correct must be {len(values)} booleans, one a confidence, got shape {right.shape}.")
        for name, value in (("target_error", target_error), ("error_probability", error_probability)):
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}, but must lie between 0 and 1.")
        if groups is not None:
            chosen = _one_of_each(_codes(groups, len(values)), seed)
            values, right = values[chosen], right[chosen]
        level = error_probability / NUM_THRESHOLDS
        needed = math.ceil(math.log(level) / math.log1p(-target_error)) + 1
        if len(values) < needed:
            raise ValueError(
                f"{len(values)} independent calibration queries cannot show an error rate of {target_error:g}, "
                f"not even without a single error: at least {needed} are needed. Calibrate with more, or raise "
                "target_error."
            )
        order = np.argsort(-values, kind="stable")
        descending, wrong = values[order], np.cumsum(1 - right[order].astype(np.int64))
        passed = cls(math.inf, target_error, error_probability, 0, 0)
        for share in range(1, NUM_THRESHOLDS + 1):
            place = share * (len(order) - 1) // NUM_THRESHOLDS
            answered = int(np.count_nonzero(descending > descending[place]))
            num_wrong = int(wrong[answered - 1]) if answered else 0
            if answered and stats.binom.cdf(num_wrong, answered, target_error) <= level:
                passed = cls(float(descending[place]), target_error, error_probability, answered, num_wrong)
        return passed

    def answers(self, confidence: npt.ArrayLike) -> np.ndarray:
        """Whether to answer queries of these confidences; bool of their shape."""
        return np.asarray(confidence, np.float64) > self.threshold


def _threshold(conformity: np.ndarray, group_of: np.ndarray, alpha: float) -> float:
    """
    The highest conformity that the best answers reach or exceed with weight `1 - alpha`; every group weighs
    `1/(groups + 1)`, and the same weight lies below all of them, for the query to come.
    """
    _, group_of, queries_in_group = np.unique(group_of, return_inverse=True, return_counts=True)
    weights = 1 / ((len(queries_in_group) + 1) * queries_in_group[group_of])
    descending = np.argsort(-conformity, kind="stable")
    reached = np.cumsum(weights[descending])
    return float(conformity[descending[np.searchsorted(reached, 1 - alpha - TOLERANCE)]])


def _strata(uncertainty: npt.ArrayLike | None, edges: np.ndarray, num_queries: int) -> np.ndarray:
    if not len(edges):
        return np.zeros(num_queries, np.int64)
    if uncertainty is None:
        raise ValueError(f"There are {len(edges) + 1} strata of uncertainty: pass the uncertainty of the queries.")
    return np.searchsorted(edges, _vector(uncertainty, "uncertainty", num_queries), side="right")


def _vector(values: npt.ArrayLike, name: str, length: int | None = None) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or not vector.size or (length is not None and len(vector) != length):
        raise ValueError(f"{name} must have shape ({length or 'queries'},) and not be empty, got {vector.shape}.")
    if np.isnan(vector).any():
        raise ValueError(
            f"{name} is NaN for {np.count_nonzero(np.isnan(vector))} queries: leave these out or fix them."
        )
    return vector


def _codes(groups: npt.ArrayLike, length: int) -> np.ndarray:
    identities = np.asarray(groups)
    if identities.shape != (length,):
        raise ValueError(f"groups must have shape ({length},), one for each query, got {identities.shape}.")
    return np.unique(identities, return_inverse=True)[1]


def _one_of_each(group_of: np.ndarray, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(group_of))
    return shuffled[np.unique(group_of[shuffled], return_index=True)[1]]
