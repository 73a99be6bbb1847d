"""Texts whose distributions nearly coincide, found exactly, in memory that grows with the number of texts alone.

Pairs are looked at in tiles, of texts sorted by concentration. In a tile, a lower bound on the divergence that needs
one matrix product picks candidates, and these alone are judged by the exact divergence in float64. With the separation
1 - mu_1'mu_2 of the directions, the two divergences KL add up to

    (kappa_1 - kappa_2)(A_1 - A_2) + (kappa_1 A_2 + kappa_2 A_1)(1 - mu_1'mu_2)             von Mises-Fisher
    (kappa_1 - kappa_2)(E_1 - E_2) + kappa_2 S_1 + kappa_1 S_2,  E = E[ln(1+t)]             Power Spherical

where A = A_d(kappa) and `S_1 = E_1 - E_1[ln(1 + mu_2'x)] >= E_1 - ln(1 + w_1 mu_1'mu_2)` by Jensen's inequality, with
the mean resultant length w. The first term grows with the distance of the concentrations, so that a tile of texts of
too different concentrations is skipped whole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ..model.distributions import VonMisesFisher
from ..model.log_normalizers import power_spherical_mean_log1p_cosine
from .divergences import TextLaw, relative_divergence


TILE = 2048
PAIRS_AT_A_TIME = 65536


@dataclass(frozen=True)
class NearDuplicates:
    """
    Attributes:
        group (int64, shape `(num_texts,)`):
            The lowest row of those that a text is joined with, directly or by way of others; its own row if alone.
        nearest (int64, shape `(num_texts,)`): row of the nearest duplicate; -1 if there is none.
        divergence (float64, shape `(num_texts,)`):
            Relative divergence from the nearest duplicate; infinite if there is none.
    """

    group: np.ndarray
    nearest: np.ndarray
    divergence: np.ndarray


@torch.no_grad()
def near_duplicates(texts: TextLaw, threshold: float, *, tile: int = TILE, progress: bool = False) -> NearDuplicates:
    """
    Every pair of texts whose relative divergence is at most a threshold, as groups and nearest neighbours.

    Args:
        texts (`VonMisesFisher` or `PowerSpherical` of batch shape `(num_texts,)`): on the CPU.
        threshold (`float`): largest [`~text_divergences.relative_divergence`] of a duplicate, >= 0.
        tile (`int`, *optional*, defaults to 2048): texts at a time, on either side.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
    """
    num_texts = len(texts.concentration)
    parent = np.arange(num_texts)
    nearest, smallest = np.full(num_texts, -1), np.full(num_texts, np.inf)
    for first, second in gathered(_candidates(texts, threshold, tile, progress)):
        divergence = relative_divergence(law_of(texts, first), law_of(texts, second)).numpy()
        close = divergence <= threshold
        first, second, divergence = first[close], second[close], divergence[close]
        keep_nearest(nearest, smallest, first, second, divergence)
        for pair in zip(first.tolist(), second.tolist(), strict=True):
            roots = [_root(parent, row) for row in pair]
            parent[max(roots)] = min(roots)
    group = np.array([_root(parent, row) for row in range(num_texts)], dtype=np.int64)
    return NearDuplicates(group, nearest, smallest)


def gathered(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same pairs of rows, 65,536 at a time."""
    waiting: list[np.ndarray] = []
    count = 0
    for pair in pairs:
        waiting.append(np.stack(pair))
        count += waiting[-1].shape[1]
        while count >= PAIRS_AT_A_TIME:
            all_waiting = np.concatenate(waiting, axis=1)
            yield all_waiting[0, :PAIRS_AT_A_TIME], all_waiting[1, :PAIRS_AT_A_TIME]
            waiting, count = [all_waiting[:, PAIRS_AT_A_TIME:]], count - PAIRS_AT_A_TIME
    if count:
        first, second = np.concatenate(waiting, axis=1)
        yield first, second


def keep_nearest(
    nearest: np.ndarray, smallest: np.ndarray, first: np.ndarray, second: np.ndarray, values: np.ndarray
) -> None:
    """
    Notes in place, for either row of some pairs, the other row where the value is smaller than what was noted before;
    of equal ones the lower row.
    """
    own, other, value = np.r_[first, second], np.r_[second, first], np.r_[values, values]
    order = np.lexsort((other, value, own))
    best = order[np.unique(own[order], return_index=True)[1]]
    better = best[value[best] < smallest[own[best]]]
    nearest[own[better]], smallest[own[better]] = other[better], value[better]


def law_of(texts: TextLaw, rows: np.ndarray) -> TextLaw:
    """Some of the texts, in float64."""
    index = torch.from_numpy(rows)
    loc = torch.nn.functional.normalize(texts.loc[index].double(), dim=-1)
    return type(texts)(loc, texts.concentration[index].double(), validate_args=False)


def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _candidates(
    texts: TextLaw, threshold: float, tile: int, progress: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of pairs among which all near-duplicates are, lower row first, tile by tile."""
    order = torch.argsort(texts.concentration, stable=True)
    loc, concentration = texts.loc[order].float(), texts.concentration[order].double()
    sorted_texts = type(texts)(texts.loc[order], concentration, validate_args=False)
    length = sorted_texts.mean_resultant_length.double()
    is_vmf = isinstance(texts, VonMisesFisher)
    expected = length if is_vmf else power_spherical_mean_log1p_cosine(concentration, texts.dim)
    said = sorted_texts._relative_entropy()
    # What float32 may take from the cosines, times the factor by which they enter.
    slack = texts.dim * torch.finfo(torch.float32).eps * concentration
    allowance = threshold * said + slack
    starts = range(0, len(order), tile)
    for start in tqdm(starts, desc="Comparing texts", unit=" tiles", disable=not progress):
        rows = slice(start, start + tile)
        last = min(start + tile, len(order)) - 1
        for other_start in range(start, len(order), tile):
            columns = slice(other_start, other_start + tile)
            end = min(other_start + tile, len(order)) - 1
            apart = (concentration[other_start] - concentration[last]) * (expected[other_start] - expected[last])
            if other_start > start and apart > 2 * allowance[end]:
                continue  # and not break: texts of higher concentration say more, so that more is allowed
            same = (concentration[rows, None] - concentration[columns]) * (expected[rows, None] - expected[columns])
            limit = (allowance[rows, None] + allowance[columns] - same).float()
            cosines = loc[rows] @ loc[columns].T
            kappas = concentration[rows].float()[:, None], concentration[columns].float()
            lengths = length[rows].float()[:, None], length[columns].float()
            if is_vmf:
                bound = (kappas[0] * lengths[1] + kappas[1] * lengths[0]) * (1 - cosines)
            else:
                means = expected[rows].float()[:, None], expected[columns].float()
                bound = kappas[1] * (means[0] - torch.log1p(lengths[0] * cosines)).clamp(min=0)
                bound += kappas[0] * (means[1] - torch.log1p(lengths[1] * cosines)).clamp(min=0)
            found = bound <= limit
            if other_start == start:
                found = found.triu(diagonal=1)
            one, other = found.nonzero(as_tuple=True)
            pair = torch.stack([order[one + start], order[other + other_start]]).sort(dim=0).values
            if pair.shape[1]:
                yield pair[0].numpy(), pair[1].numpy()
