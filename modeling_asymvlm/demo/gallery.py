"""What the page asks of a model: how certain a prompt is, which pictures it finds, which captions a picture finds."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..calibration.calibration import Calibration
from ..calibration.conformal import ConformalSets
from ..model.modeling_asymvlm import AsymVLMModel
from ..search.image_index import ImageIndex
from ..search.text_index import TextIndex
from ..store.embedding_store import EmbeddingSplit
from ..texts.encoding import backbone_features, encode_texts, text_concentration
from ..texts.tokenization import tokenize_texts
from ..texts.words import TextUncertainty, word_uncertainty
from .pictures import Pictures


ALPHAS = (0.05, 0.1, 0.2)
NUM_STRATA = 4
MAX_CHARACTERS = 500
REFERENCE_CAPTIONS = 20_000  # of the training split, to fix the strata by


@dataclass(frozen=True)
class PromptConfidence:
    """
    What the calibration of the head says of a prompt alone.

    Attributes:
        probability (`float`, *optional*): that a first result for such a text is right; `None` where it is not to be
            trusted.
        interval (`tuple[float, float]`, *optional*): how often it was for held-out captions of about this confidence.
        reason (`str`, *optional*): why there is no probability.
        gallery_size (`int`): pictures of the galleries that the probability is about.
        fits_about (`float`): number of reference pictures that the prompt fits.
        num_reference_images (`int`): how many of these there are.
        typicality (`float`): p-value among held-out captions, in (0, 1].
    """

    probability: float | None
    interval: tuple[float, float] | None
    reason: str | None
    gallery_size: int
    fits_about: float
    num_reference_images: int
    typicality: float


@dataclass(frozen=True)
class PromptReading:
    """
    How certain a prompt is.

    Attributes:
        text (`TextUncertainty`): its uncertainty and that of its words.
        rank (`float`): share of the calibration captions that are less uncertain, in [0, 1].
        ranks_so_far (`list[float]`): that of the text up to and with each word.
        confidence (`PromptConfidence`, *optional*): `None` without a calibration of the head.
    """

    text: TextUncertainty
    rank: float
    ranks_so_far: list[float]
    confidence: PromptConfidence | None = None


@dataclass(frozen=True)
class Ranking:
    """
    Results of one query, best first.

    Attributes:
        labels (`list[str]`): image ids or captions.
        log_posterior (float64, shape `(results,)`): of each, among all that were searched.
        uncertainty (float64, shape `(results,)`): of each caption, or of the prompt that pictures were found for.
        total (`int`): how many were searched.
        confidence (`float`, *optional*): that the first picture is right, if the one that is meant is there at all.
        presence (`float`, *optional*): that it is there, where as many prompts have one as have none.
    """

    labels: list[str]
    log_posterior: np.ndarray
    uncertainty: np.ndarray
    total: int
    confidence: float | None = None
    presence: float | None = None

    @property
    def posterior(self) -> np.ndarray:
        """Probabilities, float64 of shape `(results,)`."""
        return np.exp(self.log_posterior)


@dataclass(frozen=True)
class PictureSet:
    """
    The pictures of a gallery for a prompt.

    Attributes:
        ranking (`Ranking`): of all of them.
        size (`int`): so many first ones are the conformal set.
        alpha (`float`): bound on the probability that a set misses.
        num_calibration (`int`): images with which the set was calibrated.
        is_stratified (`bool`): whether all of their captions are about as uncertain as the prompt.
    """

    ranking: Ranking
    size: int
    alpha: float
    num_calibration: int
    is_stratified: bool


class Gallery:
    """
    A model with pictures and captions to search, and held-out pairs to calibrate sets with. A posterior depends on how
    many pictures it is spread over, so both splits must have equally many.

    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode.
        processor (`ProcessorMixin`): the backbone's.
        shown (`EmbeddingSplit`): the pictures and captions to search.
        calibration (`EmbeddingSplit`): with as many images.
        pictures (`Pictures`): of `shown`.
        reference (`EmbeddingSplit`, *optional*): training captions, whose uncertainty borders the strata.
        trust (`Calibration`, *optional*): of the model's head: pictures are ranked by corrected scores, and what is
            known of a prompt is told.
        name (`str`, *optional*): of the model, for the page.
    """

    def __init__(
        self,
        model: AsymVLMModel,
        processor: Any,
        shown: EmbeddingSplit,
        calibration: EmbeddingSplit,
        pictures: Pictures,
        *,
        reference: EmbeddingSplit | None = None,
        trust: Calibration | None = None,
        name: str = "",
    ):
        self.model, self.processor, self.pictures, self.name = model, processor, pictures, name
        self.trust = trust
        self.images = ImageIndex.from_split(model, shown, calibration=trust)
        self.captions = _distinct_captions(model, shown)
        self.image_ids = list(shown.image_ids)
        queries = _embedded(model, calibration.text_features[:])
        self._groups = calibration.text_image_index.numpy()
        self._conformity = ImageIndex.from_split(model, calibration, calibration=trust).log_posterior(
            queries, self._groups[:, None].tolist()
        )
        self._calibration_uncertainty = _uncertainty(queries)
        self._edges = self._borders(reference)

    @property
    def first_prompt(self) -> str:
        """A short caption of middling uncertainty: something can be added, and something can go."""
        captions = self.captions.labels.to_pylist()
        lengths = np.array([len(caption) for caption in captions])
        short = np.flatnonzero(lengths <= np.quantile(lengths, 0.25))
        ascending = short[np.argsort(self.captions.concentration[short])]
        return captions[ascending[len(ascending) // 2]]

    @property
    def num_calibration(self) -> int:
        """Captions that sets are calibrated with and prompts are compared with."""
        return len(self._calibration_uncertainty)

    def read(self, prompt: str) -> PromptReading:
        """
        How certain a prompt is, and which words make it so.

        Raises:
            ValueError: for a prompt that is empty or too long.
        """
        _check_length(prompt)
        text = word_uncertainty(self.model, self.processor, prompt)
        beginnings = [prompt[: word.end] for word in text.words]
        so_far = 1 / text_concentration(self.model, self.processor, beginnings)
        ranks = [self._rank(value) for value in so_far.tolist()]
        return PromptReading(text, self._rank(text.uncertainty), ranks, self._confidence(prompt))

    def _confidence(self, prompt: str) -> PromptConfidence | None:
        trust = self.trust
        if trust is None:
            return None
        report = trust.text_report(backbone_features(self.model, tokenize_texts(self.processor, prompt)))
        probability = interval = None
        if report.text_confidence is not None and report.text_confidence_interval is not None:
            probability = float(report.text_confidence[0])
            low, high = report.text_confidence_interval[0].tolist()
            interval = low, high
        return PromptConfidence(
            probability,
            interval,
            trust.of_text.measured.reason,
            trust.gallery_size,
            float(report.fits_about[0]),
            trust.num_reference_images,
            float(report.typicality[0]),
        )

    def find_pictures(self, prompt: str, alpha: float) -> PictureSet:
        """
        All pictures, the most probable first, and how many of them are the conformal set.

        Raises:
            ValueError: for a prompt that is empty or too long, and where the calibration captions are too few.
        """
        _check_length(prompt)
        ranking = _ranking(self.images, encode_texts(self.model, self.processor, prompt), len(self.images))
        sets = self._calibrated(alpha, self._edges)
        uncertainty = ranking.uncertainty[:1]
        sizes, _ = sets.sizes(ranking.log_posterior[None], uncertainty, gallery_size=len(self.images))
        stratum = int(np.searchsorted(sets.edges, uncertainty[0], side="right"))
        return PictureSet(ranking, int(sizes[0]), alpha, int(sets.num_calibration[stratum]), len(sets.edges) > 0)

    @torch.no_grad()
    def find_captions(self, picture: Image.Image, count: int) -> Ranking:
        """The `count` most probable captions for a picture, or all if there are fewer."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        features = self.model.get_image_features(**inputs).pooler_output
        return _ranking(self.captions, features, min(count, len(self.captions)))

    def _rank(self, uncertainty: float) -> float:
        return float(np.mean(self._calibration_uncertainty < uncertainty))

    def _calibrated(self, alpha: float, edges: list[float]) -> ConformalSets:
        return ConformalSets.calibrate(
            self._conformity, alpha, groups=self._groups, uncertainty=self._calibration_uncertainty, edges=edges
        )

    def _borders(self, reference: EmbeddingSplit | None) -> list[float]:
        """Quantiles of the uncertainty of training captions; none where a stratum would hold too few to calibrate."""
        if reference is None:
            return []
        step = math.ceil(len(reference.captions) / REFERENCE_CAPTIONS)
        uncertainty = _uncertainty(_embedded(self.model, reference.text_features[::step]))
        borders = np.unique(np.quantile(uncertainty, np.arange(1, NUM_STRATA) / NUM_STRATA)).tolist()
        try:
            self._calibrated(min(ALPHAS), borders)
        except ValueError:
            return []
        return borders


def _check_length(prompt: str) -> None:
    """Raises `ValueError` for a prompt so long that its tokenisation would keep other visitors waiting."""
    if len(prompt) > MAX_CHARACTERS:
        raise ValueError(f"The prompt has {len(prompt)} characters, more than {MAX_CHARACTERS}: shorten it.")


def _ranking(index: ImageIndex | TextIndex, query: torch.Tensor, count: int) -> Ranking:
    found = index.search(query, k=count)
    confidence, presence = (
        None if values is None else float(values[0]) for values in (found.confidence, found.presence)
    )
    log_posterior = np.asarray(found.log_posterior)[0]
    return Ranking(found.labels[0], log_posterior, found.uncertainty[0], len(index), confidence, presence)


@torch.no_grad()
def _embedded(model: AsymVLMModel, text_features: torch.Tensor) -> torch.Tensor:
    return model.get_text_features(text_features=text_features.to(model.device)).pooler_output.cpu()


def _uncertainty(eta: torch.Tensor) -> np.ndarray:
    return (1 / torch.linalg.vector_norm(eta.double(), dim=-1)).numpy()


def _distinct_captions(model: AsymVLMModel, split: EmbeddingSplit) -> TextIndex:
    """Each caption once, however many pictures have it."""
    rows = {caption: row for row, caption in reversed(list(enumerate(split.captions)))}
    index = TextIndex(
        split.dim,
        **asdict(model.config.law),
        logit_scale=model.logit_scale.item(),
    )
    index.add(_embedded(model, split.text_features[torch.tensor(list(rows.values()))]), list(rows))
    return index
