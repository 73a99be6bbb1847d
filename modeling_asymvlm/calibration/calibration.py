"""What held-out pairs teach of a head: which of its confidences may be believed, and how far."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.modeling_asymvlm import AsymVLMModel
from .calibration_files import read_calibration, tensor_file, write_calibration
from .confidences import CalibratedConfidence, MeasuredConfidence, posterior_log_odds
from .corpus import ReferenceCorpus, text_embeds_of
from .evidence import EvidenceCorrection
from .fitting import fit_parts
from .presence import GalleryCosines, Presence
from .reference import UncertaintyReference
from .text_probe import CorpusReader, CorpusView, TextProbe
from .typicality import Typicality


@dataclass(frozen=True)
class TextReport:
    """
    What a calibration says of texts alone; arrays of shape `(texts,)`.

    Attributes:
        text_confidence (float64, *optional*): that a first result for such a text is right, in a gallery of
            `gallery_size` pictures that holds the answer; `None` where it is not to be trusted.
        text_confidence_interval (float64 of shape `(texts, 2)`, *optional*): how often it was for held-out captions of
            about this confidence, 95 %.
        fits_about (float64): number of reference pictures that a text fits, the exponential of the entropy of its
            posterior over them, from 1 to `num_reference_images`.
        typicality (float64): p-value of the text among held-out captions; small is unlike any.
    """

    text_confidence: np.ndarray | None
    text_confidence_interval: np.ndarray | None
    fits_about: np.ndarray
    typicality: np.ndarray

    def take(self, rows: np.ndarray) -> "TextReport":
        """The report of these texts, in their order; a text may stand in it several times."""
        return TextReport(
            None if self.text_confidence is None else self.text_confidence[rows],
            None if self.text_confidence_interval is None else self.text_confidence_interval[rows],
            self.fits_about[rows],
            self.typicality[rows],
        )


@dataclass(frozen=True)
class Calibration:
    """
    A calibration of one head, made from training and validation pairs by [`Calibration.fit`].

    Attributes:
        model (`AsymVLMModel`): a copy of the head, without a backbone.
        corpus (`ReferenceCorpus`): a sample of the training pairs.
        correction (`EvidenceCorrection`): of text -> image scores.
        typical (`Typicality`): of text features.
        text_probe (`TextProbe`): what a text alone foretells; of its features alone where held-out captions did not
            prove more to be better.
        of_text, of_result (`CalibratedConfidence`): from the score of a text, and of a first result, to a probability,
            and the worth of that.
        present (`Presence`): whether the answer is there.
        of_presence (`MeasuredConfidence`): the worth of that.
        reference (`UncertaintyReference`, *optional*): 1/kappa of held-out captions, for percentiles; `None` for a
            deterministic head.
        concentration (`MeasuredConfidence`, *optional*): the worth of 1/kappa itself.
        backbone_scale (`float`): inverse temperature of the backbone's own cosine, fitted on held-out captions.
        gallery_size (`int`): images that held-out captions searched.
    """

    model: AsymVLMModel
    corpus: ReferenceCorpus
    correction: EvidenceCorrection
    typical: Typicality
    text_probe: TextProbe
    of_text: CalibratedConfidence
    of_result: CalibratedConfidence
    present: Presence
    of_presence: MeasuredConfidence
    reference: UncertaintyReference | None
    concentration: MeasuredConfidence | None
    backbone_scale: float
    gallery_size: int

    @classmethod
    def fit(cls, model: AsymVLMModel, train: Any, validation: Any, *, corpus: str = "", seed: int = 0) -> Self:
        """
        Args:
            model (`AsymVLMModel`): in evaluation mode, on any device; untrained heads are calibrated as well.
            train (`EmbeddingSplit`): the reference corpus is drawn from it.
            validation (`EmbeddingSplit`): held-out pairs, on which everything is chosen and measured.
            corpus (`str`, *optional*): what the validation captions are called in percentiles.
            seed (`int`, *optional*, defaults to 0): of samples and folds.

        Raises:
            ValueError: for splits of another width than the model's, and for fewer than 20 validation captions or
                images.
        """
        return cls(**fit_parts(model, train, validation, corpus=corpus, seed=seed))

    @cached_property
    def head(self) -> str:
        """Fingerprint of the head."""
        return head_fingerprint(self.model)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of all that is fitted, by which an index names its calibration."""
        return hashlib.sha256(tensor_file(self)).hexdigest()

    @cached_property
    def _reader(self) -> CorpusReader:
        return CorpusReader(self.corpus, self.model.config.law, self.model.logit_scale.item(), self.correction)

    @cached_property
    def _corpus_evidence(self) -> torch.Tensor:
        return self.evidence(self.corpus.image_embeds)

    def is_of(self, model: AsymVLMModel) -> bool:
        """Whether the calibration is of the model's head."""
        return head_fingerprint(model) == self.head

    def check_head(self, model: AsymVLMModel) -> None:
        """Raises `ValueError` if the calibration is of another head than the model's."""
        if not self.is_of(model):
            raise ValueError(
                "This calibration was made with other head weights than this model's, so that its numbers would mean "
                "nothing. Make it anew with Calibration.fit, or load the one that was saved with these weights."
            )

    def evidence(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """The evidence of images, float64 of shape `(images,)`, for vectors of any non-zero length; in nats."""
        return self._reader.evidence(F.normalize(image_embeds.float().cpu(), dim=-1))

    def result_confidence(self, log_posterior: Any) -> np.ndarray | None:
        """
        The probability that a first result is right, given that the answer is in the gallery; `None` where it is not
        to be trusted.

        Args:
            log_posterior (shape `(queries,)`): logarithm of the corrected posterior of the first result.
        """
        return self.result_probability(log_posterior) if self.of_result.measured.is_trusted else None

    def result_probability(self, log_posterior: Any) -> np.ndarray:
        """[`result_confidence`], trusted or not: for its evaluation."""
        return self.of_result.probability(posterior_log_odds(torch.as_tensor(log_posterior)))

    def presence(
        self,
        text_embeds: torch.Tensor,
        top_cosine: Any,
        second_cosine: Any,
        mean_cosine: Any,
        deviation_cosine: Any,
        num_images: int,
        prior: float = 0.5,
    ) -> np.ndarray | None:
        """
        The probability that the answer is in the gallery at all; `None` where it is not to be trusted.

        Args:
            text_embeds (`torch.Tensor` of shape `(queries, dim)`): natural parameters.
            top_cosine, second_cosine, mean_cosine, deviation_cosine (shape `(queries,)`): of the mean direction with
                the gallery's images.
            num_images (`int`): in the gallery.
            prior (`float`, *optional*, defaults to 0.5): how often the answer is there, in (0, 1).
        """
        if not self.of_presence.is_trusted:
            return None
        columns = (top_cosine, second_cosine, mean_cosine, deviation_cosine)
        first, second, mean, deviation = (torch.as_tensor(column).double() for column in columns)
        cosines = GalleryCosines(first, second, mean, deviation, num_images)
        return self.present.probability(text_embeds.float().cpu(), cosines, prior).numpy()

    def text_report(self, text_features: torch.Tensor) -> TextReport:
        """
        All that is known of texts alone.

        Args:
            text_features (`torch.Tensor` of shape `(texts, dim)`): the backbone's, raw.
        """
        text_features, view = self._view(text_features)
        confidence = interval = None
        if self.of_text.measured.is_trusted:
            confidence = self.of_text.probability(self.text_probe(text_features, view))
            interval = self.of_text.interval(confidence)
        return TextReport(confidence, interval, view.entropy.exp().numpy(), self.typicality(text_features))

    def _view(self, text_features: torch.Tensor) -> tuple[torch.Tensor, CorpusView]:
        text_features = torch.as_tensor(text_features).float().cpu()
        return text_features, self._reader.view(text_embeds_of(self.model, text_features), self._corpus_evidence)

    def text_probability(self, text_features: torch.Tensor) -> np.ndarray:
        """[`text_confidence`], trusted or not: for its evaluation."""
        return self.of_text.probability(self.text_probe(*self._view(text_features)))

    def text_confidence(self, text_features: torch.Tensor) -> np.ndarray | None:
        """The probability that a gallery's first result will be right, from texts alone; see [`TextReport`]."""
        return self.text_report(text_features).text_confidence

    def typicality(self, text_features: torch.Tensor) -> np.ndarray:
        """p-values of texts among held-out captions, float64 of shape `(texts,)`: small is unlike any of them."""
        return self.typical.p_value(torch.as_tensor(text_features).float().cpu()).numpy()

    @property
    def num_reference_images(self) -> int:
        """Pictures that `fits_about` counts among."""
        return len(self.corpus.image_embeds)

    @property
    def measured(self) -> dict[str, MeasuredConfidence]:
        """The worth of each confidence on held-out captions, by its name."""
        worth = {
            "text_confidence": self.of_text.measured,
            "confidence": self.of_result.measured,
            "presence": self.of_presence,
        }
        return worth if self.concentration is None else {"concentration": self.concentration, **worth}

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `calibration.json` and `calibration.safetensors` into the folder of a checkpoint."""
        write_calibration(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike, *, model: AsymVLMModel | None = None, **hub_arguments: Any
    ) -> Self:
        """
        Args:
            name_or_path (`str` or `os.PathLike`): the folder of a checkpoint, or its repository on the Hub.
            model (`AsymVLMModel`, *optional*): whose head it must be of.
            hub_arguments: `revision`, `token`, `cache_dir` and others of `huggingface_hub.hf_hub_download`.

        Raises:
            FileNotFoundError: if the checkpoint has no calibration, or the Hub cannot be reached.
            ValueError: if it is damaged, of a format that is not known, or of another head than the model's.
        """
        calibration = cls(**read_calibration(name_or_path, **hub_arguments))
        if model is not None:
            calibration.check_head(model)
        return calibration
