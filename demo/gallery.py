"""What the page asks of a model: how certain a prompt is, which pictures it finds, which captions a picture finds."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pictures import Pictures
from PIL import Image

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.conformal import ConformalSets
from modeling_asymvlm.data import EmbeddingSplit
from modeling_asymvlm.queries import text_queries
from modeling_asymvlm.retrieval import ImageIndex, SearchResults, TextIndex
from modeling_asymvlm.specificity import text_concentration
from modeling_asymvlm.word_uncertainty import TextUncertainty, word_uncertainty


ALPHAS = (0.05, 0.1, 0.2, 0.3)
NUM_STRATA = 4
MAX_CHARACTERS = 500
REFERENCE_CAPTIONS = 20_000  # of the training split, to fix the strata by


@dataclass(frozen=True)
class PromptReading:
    """
    How certain a prompt is.

    Attributes:
        text (`TextUncertainty`): its uncertainty and that of its words.
        rank (`float`): share of the calibration captions that are less uncertain, in [0, 1].
        ranks_so_far (`list[float]`): that of the text up to and with each word.
    """

    text: TextUncertainty
    rank: float
    ranks_so_far: list[float]


@dataclass(frozen=True)
class PictureSet:
    """
    The pictures of a gallery for a prompt.

    Attributes:
        found (`SearchResults`): all of them, best first.
        size (`int`): so many first ones are the conformal set.
        alpha (`float`): bound on the probability that a set misses.
        num_calibration (`int`): images with which the set was calibrated.
        is_stratified (`bool`): whether all of their captions are about as uncertain as the prompt.
    """

    found: SearchResults
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
        name: str = "",
    ):
        self.model, self.processor, self.pictures, self.name = model, processor, pictures, name
        self.images = ImageIndex.from_split(model, shown)
        self.captions = _distinct_captions(model, shown)
        self.image_ids = list(shown.image_ids)
        queries = _embedded(model, calibration.text_features[:])
        self._groups = calibration.text_image_index.numpy()
        self._conformity = ImageIndex.from_split(model, calibration).log_posterior(queries, self._groups[:, None])
        self._calibration_uncertainty = _uncertainty(queries)
        self._edges = self._borders(reference)

    @property
    def first_prompt(self) -> str:
        """A caption of middling uncertainty, to which something can be added and from which something can go."""
        ascending = np.argsort(self.captions.concentration)
        return self.captions.labels[int(ascending[len(ascending) // 2])].as_py()

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
        if len(prompt) > MAX_CHARACTERS:
            raise ValueError(f"The prompt has {len(prompt)} characters, more than {MAX_CHARACTERS}: shorten it.")
        text = word_uncertainty(self.model, self.processor, prompt)
        beginnings = [prompt[: word.end] for word in text.words]
        so_far = 1 / text_concentration(self.model, self.processor, beginnings)
        return PromptReading(text, self._rank(text.uncertainty), [self._rank(value) for value in so_far.tolist()])

    def find_pictures(self, prompt: str, alpha: float) -> PictureSet:
        """
        All pictures, the most probable first, and how many of them are the conformal set.

        Raises:
            ValueError: for a prompt that is empty or too long, and where the calibration captions are too few.
        """
        found = self.images.search(text_queries(self.model, self.processor, prompt), k=len(self.images))
        sets = self._calibrated(alpha, self._edges)
        uncertainty = found.uncertainty[:, 0]
        size = int(sets.sizes(found.log_posterior, uncertainty, gallery_size=len(self.images))[0][0])
        stratum = int(np.searchsorted(sets.edges, uncertainty[0], side="right"))
        return PictureSet(found, size, alpha, int(sets.num_calibration[stratum]), len(sets.edges) > 0)

    @torch.no_grad()
    def find_captions(self, picture: Image.Image, count: int) -> SearchResults:
        """The `count` most probable captions for a picture, or all if there are fewer."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        return self.captions.search(
            self.model.get_image_features(**inputs).pooler_output, k=min(count, len(self.captions))
        )

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
        distribution=model.config.distribution,
        normalizer=model.config.normalizer,
        logit_scale=model.logit_scale.item(),
    )
    index.add(_embedded(model, split.text_features[torch.tensor(list(rows.values()))]), list(rows))
    return index
