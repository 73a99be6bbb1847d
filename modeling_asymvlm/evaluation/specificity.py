"""Whether uncertainty falls as texts become more specific: hierarchies of captions, and words that are taken away."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import as_array, spearman, vectors


def specificity_correlation(
    concentration: npt.ArrayLike, level: npt.ArrayLike, group: npt.ArrayLike
) -> dict[str, float]:
    """Whether concentration rises with specificity in hierarchies of captions, such as HierarCaps (ECCV 2024).

    Args:
        concentration (shape `(texts,)`): higher is more specific.
        level (shape `(texts,)`): place in the hierarchy; 0 is the most general.
        group (integers or strings, shape `(texts,)`): the hierarchy that a caption belongs to.

    Returns:
        `mean_group_spearman`: Spearman correlation of concentration and level in a group, mean over the groups in
        which concentration varies, in [-1, 1], ideal 1; NaN where there is none;
        `ordered_share`: share of all groups in which every caption has a higher concentration than every caption of
        a more general level, in [0, 1];
        `pair_accuracy`: share of the pairs of captions, of one group and different levels, in which the more specific
        caption, which entails the other, has the higher concentration; equal ones count one half; in [0, 1], 0.5 by
        chance. Twice it minus 1 is Kendall's tau, averaged over groups of equal form: HierarCaps' d_corr;
        `overall_spearman`: the correlation over all captions, NaN where concentration is constant;
        `num_groups`, and `num_constant_groups` without a correlation.

    Raises:
        ValueError: on NaN, no values, shapes that disagree, or a group whose captions are all of one level.
    """
    concentration, level = vectors(concentration=concentration, level=level)
    labels = as_array(group)
    if labels.shape != level.shape:
        raise ValueError(f"`group` has shape {labels.shape}; it must be {level.shape}, one label for each caption.")
    names, counts = np.unique(labels, return_counts=True)
    order = np.lexsort((level, labels))  # by group, then by level
    correlations, ordered, right, pairs = [], [], 0.0, 0
    for name, members in zip(names, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        group_level, group_concentration = level[members], concentration[members]
        more_specific = group_level[:, None] > group_level
        if not more_specific.any():
            raise ValueError(
                f"every caption of group {name!r} has level {group_level[0]}; a group needs two levels at least. "
                "Leave the group out."
            )
        higher = (group_concentration[:, None] > group_concentration)[more_specific]
        equal = (group_concentration[:, None] == group_concentration)[more_specific]
        right += np.count_nonzero(higher) + np.count_nonzero(equal) / 2
        pairs += len(higher)
        ordered.append(bool(higher.all()))
        correlations.append(spearman(group_concentration, group_level))
    defined = [value for value in correlations if not np.isnan(value)]
    return {
        "mean_group_spearman": float(np.mean(defined)) if defined else float("nan"),
        "ordered_share": float(np.mean(ordered)),
        "pair_accuracy": float(right / pairs),
        "overall_spearman": spearman(concentration, level),
        "num_groups": len(names),
        "num_constant_groups": len(correlations) - len(defined),
    }


def graded(level: npt.ArrayLike, group: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which captions are in a group of several levels, as [`specificity_correlation`] asks for: `(texts,)`.

    Args:
        level, group (shape `(texts,)`): as for [`specificity_correlation`].
    """
    (level,) = vectors(level=level)
    _, member = np.unique(as_array(group), return_inverse=True)
    lowest, highest = np.full(member.max() + 1, np.inf), np.full(member.max() + 1, -np.inf)
    np.minimum.at(lowest, member, level)
    np.maximum.at(highest, member, level)
    return (lowest < highest)[member]


@dataclass(frozen=True)
class ShortenedCaptions:
    """Captions that have lost words; see [`remove_words`].

    Attributes:
        captions (`list[str]`): the variants, those of a caption one after the other.
        kept (`int64`, shape `(variants,)`): how many words of the caption are left.
        group (`int64`, shape `(variants,)`): index of the caption that a variant was made from.
    """

    captions: list[str]
    kept: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]


def remove_words(
    captions: Sequence[str],
    *,
    kept_shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    mask: str | None = None,
    seed: int = 0,
) -> ShortenedCaptions:
    """Variants of each caption with fewer and fewer of its words, for [`word_removal_metrics`].

    The words go in one random order, so that a shorter variant lacks all that a longer one lacks. A text with fewer
    words says less: its uncertainty must rise. That a random word goes, and not a phrase, makes the texts
    ungrammatical, as in all tests of this kind.

    Args:
        captions (`Sequence[str]`): texts; words are what blanks separate. Those of one word have no shorter variant
            and are left out.
        kept_shares (`Sequence[float]`): shares of the words to keep, each in (0, 1], rounded to words, at least one.
            Shares that keep the same number of words give one variant.
        mask (`str`, *optional*): put in place of each word that goes, such as the tokenizer's mask token, so that the
            length stays; by default words are deleted.
        seed (`int`, defaults to 0): of the order of the words.

    Raises:
        ValueError: if a share lies outside (0, 1], or no caption has two variants.
    """
    if not kept_shares or not all(0 < share <= 1 for share in kept_shares):
        raise ValueError(f"`kept_shares` is {tuple(kept_shares)}; each share must lie in (0, 1], as in (1.0, 0.5).")
    generator = np.random.default_rng(seed)
    variants: list[str] = []
    kept: list[int] = []
    group: list[int] = []
    for row, caption in enumerate(captions):
        words = caption.split()
        order = generator.permutation(len(words))
        counts = sorted({max(1, round(share * len(words))) for share in kept_shares}, reverse=True)
        if len(words) < 2 or len(counts) < 2:
            continue
        for count in counts:
            gone = set(order[count:].tolist())
            left = [word if place not in gone else mask for place, word in enumerate(words)]
            variants.append(" ".join(word for word in left if word is not None))
            kept.append(count)
            group.append(row)
    if not variants:
        raise ValueError(
            f"none of the {len(captions)} captions has variants of different length: give longer captions or other "
            "`kept_shares`."
        )
    return ShortenedCaptions(variants, np.array(kept), np.array(group))


def word_removal_metrics(uncertainty: npt.ArrayLike, kept: npt.ArrayLike, group: npt.ArrayLike) -> dict[str, float]:
    """Whether uncertainty rises as words go.

    Args:
        uncertainty (shape `(variants,)`): of each of [`ShortenedCaptions`].
        kept, group (shape `(variants,)`): of the same.

    Returns:
        `mean_group_spearman`: Spearman correlation of uncertainty and words lost, mean over the captions, ideal 1;
        `rising_share`: share of the captions whose uncertainty rises at every step; `pair_accuracy`: share of the
        pairs of variants of a caption in which the one with fewer words is less certain, equal ones one half, 0.5 by
        chance; `num_captions`.

    Raises:
        ValueError: as [`specificity_correlation`].
    """
    uncertainty, kept = vectors(uncertainty=uncertainty, kept=kept)
    metrics = specificity_correlation(-uncertainty, kept, group)
    return {
        "mean_group_spearman": metrics["mean_group_spearman"],
        "rising_share": metrics["ordered_share"],
        "pair_accuracy": metrics["pair_accuracy"],
        "num_captions": metrics["num_groups"],
    }
