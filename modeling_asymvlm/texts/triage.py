"""What is amiss in a set of captions: vague ones, near-duplicates, and ones at odds with another of their image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibration.calibration import Calibration, TextReport
from ..model.modeling_asymvlm import AsymVLMModel
from .divergences import TextLaw, directional_divergence
from .encoding import backbone_features
from .near_duplicates import NearDuplicates, gathered, keep_nearest, law_of, near_duplicates
from .tokenization import check_texts, tokenize_texts


# Pairs of captions of different images that the threshold of a contradiction is a quantile of.
NUM_RANDOM_PAIRS = 20_000


@dataclass(frozen=True)
class Triage:
    """
    What was found, by the captions' places in the data.

    Attributes:
        concentration (float64, shape `(num_captions,)`): kappa; the uncertainty is 1 / kappa.
        cut (bool, shape `(num_captions,)`): whether a caption is longer than the context.
        duplicates (`NearDuplicates`): equal captions among them.
        contradiction (int64, shape `(num_captions,)`):
            The caption of the same image that contradicts most; -1 if none does.
        contradiction_divergence (float64, shape `(num_captions,)`):
            How far apart their directions are, in nats; NaN if none contradicts.
        contradiction_threshold (`float`, *optional*):
            In nats; `None` where no two captions share an image, or all do.
        report (`TextReport`, *optional*): what a calibration says of each caption; `None` without one.
    """

    concentration: np.ndarray
    cut: np.ndarray
    duplicates: NearDuplicates
    contradiction: np.ndarray
    contradiction_divergence: np.ndarray
    contradiction_threshold: float | None
    report: TextReport | None = None


def triage(
    model: AsymVLMModel,
    tokenizer: Any,
    captions: Sequence[str],
    image_ids: Sequence[str] | None = None,
    *,
    duplicate_divergence: float = 0.05,
    contradiction_quantile: float = 0.5,
    batch_size: int = 256,
    progress: bool = False,
    calibration: Calibration | None = None,
) -> Triage:
    """
    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode, on any device.
        tokenizer (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        captions (`Sequence[str]`): at least one; equal ones are embedded once.
        image_ids (`Sequence[str]`, *optional*): the image of each caption; without them, no contradiction is found.
        duplicate_divergence (`float`, *optional*, defaults to 0.05):
            Largest [`~text_divergences.relative_divergence`] of near-duplicates.
        contradiction_quantile (`float`, *optional*, defaults to 0.5):
            Captions of one image contradict each other if their [`~text_divergences.directional_divergence`] exceeds
            this quantile of that between captions of different images, of which 20,000 pairs are drawn with a fixed
            seed.
        batch_size (`int`, *optional*, defaults to 256): captions in the backbone at a time.
        progress (`bool`, *optional*, defaults to `False`): whether to show progress bars.
        calibration (`Calibration`, *optional*): of the model's head.

    Raises:
        TypeError: for a caption that is no string.
        ValueError: for a deterministic model, a model without a backbone, no caption, and an empty one.
    """
    distribution_class = model.config.law.distribution_class
    if not captions:
        raise ValueError("There are no captions.")
    check_texts(captions)
    distinct = list(dict.fromkeys(captions))
    number_of = {text: number for number, text in enumerate(distinct)}
    number = np.array([number_of[text] for text in captions])
    tokenized = tokenize_texts(tokenizer, distinct)
    cut = tokenized.too_long(model.config.text_max_length)
    features = backbone_features(model, tokenized, batch_size=batch_size, progress=progress)
    eta = model.get_text_features(text_features=features, return_dict=True).pooler_output.detach().cpu()
    texts = distribution_class.from_natural_parameter(eta, validate_args=False)
    duplicates = _with_equal_captions(near_duplicates(texts, duplicate_divergence, progress=progress), number)
    images = None if image_ids is None else np.unique(np.asarray(image_ids), return_inverse=True)[1]
    contradiction, divergence, threshold = _contradictions(texts, number, images, contradiction_quantile)
    concentration = texts.concentration.double().numpy()[number]
    report = None if calibration is None else calibration.text_report(features).take(number)
    return Triage(concentration, cut[number], duplicates, contradiction, divergence, threshold, report)


def _with_equal_captions(distinct: NearDuplicates, number: np.ndarray) -> NearDuplicates:
    """Near-duplicates among all captions, out of those among distinct ones."""
    numbers, first = np.unique(number, return_index=True)
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], numbers)
    counts = np.bincount(number)
    second = order[np.minimum(starts + 1, len(order) - 1)]
    places = np.arange(len(number))
    repeated = counts[number] > 1
    equal = np.where(places == first[number], second[number], first[number])
    other = np.where(distinct.nearest >= 0, first[distinct.nearest], -1)[number]
    lowest = np.full(len(numbers), len(number))
    np.minimum.at(lowest, distinct.group, first)
    return NearDuplicates(
        group=lowest[distinct.group][number],
        nearest=np.where(repeated, equal, other),
        divergence=np.where(repeated, 0.0, distinct.divergence[number]),
    )


def _contradictions(
    texts: TextLaw, number: np.ndarray, images: np.ndarray | None, quantile: float
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """For each caption the one of its image that contradicts most, how much, and the threshold."""
    worst, closest = np.full(len(number), -1), np.full(len(number), np.inf)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(number), size=(2, NUM_RANDOM_PAIRS))
    drawn = drawn[:, :0] if images is None else drawn[:, images[drawn[0]] != images[drawn[1]]]
    if images is None or not drawn.shape[1] or len(np.unique(images)) == len(images):
        return worst, np.full(len(number), np.nan), None
    threshold = float(np.quantile(_directional(texts, number[drawn[0]], number[drawn[1]]), quantile))
    for first, second in gathered(_pairs_of_images(images)):
        apart = _directional(texts, number[first], number[second])
        far = apart > threshold
        keep_nearest(worst, closest, first[far], second[far], -apart[far])
    return worst, np.where(worst >= 0, -closest, np.nan), threshold


def _pairs_of_images(images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of captions that share an image, each pair once."""
    order = np.argsort(images, kind="stable")
    last = np.repeat(np.cumsum(np.bincount(images)), np.bincount(images))  # one past the image's last caption
    for position, end in enumerate(last.tolist()):
        others = order[position + 1 : end]
        yield np.full(len(others), order[position]), others


def _directional(texts: TextLaw, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return directional_divergence(law_of(texts, first), law_of(texts, second)).numpy()
