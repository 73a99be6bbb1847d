"""How uncertain the texts of a corpus are, kept with a model so that one text can be placed among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.modeling_asymvlm import AsymVLMModel
from .corpus import text_embeds_of


# A percentile is read to a tenth, whatever the size of the corpus.
MAX_KEPT = 1001
ROUNDING = 1e-5


@dataclass(frozen=True)
class UncertaintyReference:
    """
    The uncertainties 1 / kappa of the texts of a corpus under one head.

    Attributes:
        corpus (`str`): what the texts are.
        num_texts (`int`): how many there were.
        uncertainties (`tuple[float, ...]`):
            Ascending; all of them, or 1001 at evenly spaced ranks, the least and the greatest included.
        head (`str`): fingerprint of the head that they are of.
    """

    corpus: str
    num_texts: int
    uncertainties: tuple[float, ...]
    head: str

    def __post_init__(self) -> None:
        if not self.uncertainties or self.num_texts < len(self.uncertainties):
            raise ValueError(
                f"A reference of {self.num_texts} texts holds {len(self.uncertainties)} uncertainties, but must hold "
                "from 1 to that number."
            )
        values = np.asarray(self.uncertainties, dtype=np.float64)
        if not (values > 0).all() or not (np.diff(values) >= 0).all():
            raise ValueError("The uncertainties of a reference must be positive and ascending, none of them NaN.")

    @classmethod
    def from_concentration(
        cls, concentration: torch.Tensor | np.ndarray | Sequence[float], model: AsymVLMModel, *, corpus: str
    ) -> Self:
        """
        Args:
            concentration (`torch.Tensor`, array or sequence of shape `(num_texts,)`): kappa > 0 under the head.
            model (`AsymVLMModel`): whose head gave it.
            corpus (`str`): what the texts are.

        Raises:
            ValueError: for no text, and for a concentration that is NaN or negative.
        """
        ascending = np.sort(1 / np.asarray(concentration, dtype=np.float64))
        ranks = np.linspace(0, len(ascending) - 1, min(len(ascending), MAX_KEPT)).round().astype(np.int64)
        return cls(corpus, len(ascending), tuple(ascending[ranks].tolist()), head_fingerprint(model))

    @classmethod
    def from_features(cls, model: AsymVLMModel, text_features: Any, *, corpus: str) -> Self:
        """
        Args:
            model (`AsymVLMModel`): in evaluation mode, on any device.
            text_features (`torch.Tensor` or `FeatureMatrix` of shape `(num_texts, projection_dim)`):
                The backbone's raw features of the texts.
            corpus (`str`): what the texts are.

        Raises:
            ValueError: for a deterministic model, and as [`from_concentration`].
        """
        model.config.law.check_concentration()
        concentration = torch.linalg.vector_norm(text_embeds_of(model, text_features), dim=-1)
        return cls.from_concentration(concentration, model, corpus=corpus)

    def percentile(self, uncertainty: float) -> float:
        """
        The share of the corpus's texts, in per cent, that are less uncertain, equal ones counting one half: 0 is more
        specific than all of them, 100 vaguer than all. To within 0.1. Equal is what differs by less than 1e-5 of
        itself, since the same text gives other last digits in another batch.
        """
        below = np.searchsorted(self.uncertainties, uncertainty * (1 - ROUNDING), side="left")
        not_above = np.searchsorted(self.uncertainties, uncertainty * (1 + ROUNDING), side="right")
        return float(100 * (below + not_above) / 2 / len(self.uncertainties))

    def is_of(self, model: AsymVLMModel) -> bool:
        """Whether the uncertainties are those of the model's head."""
        return self.head == head_fingerprint(model)

    def check_head(self, model: AsymVLMModel) -> None:
        """Raises `ValueError` if the uncertainties are those of another head, whose scale is another."""
        if not self.is_of(model):
            raise ValueError(
                f"The reference uncertainties of {self.corpus!r} were computed with other head weights than this "
                "model's, so that percentiles would mean nothing. Compute them anew with "
                "UncertaintyReference.from_features, or load those that were saved with these weights."
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "corpus": self.corpus,
            "num_texts": self.num_texts,
            "head": self.head,
            "uncertainties": list(self.uncertainties),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of [`to_dict`]. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        uncertainties = tuple(float(value) for value in content["uncertainties"])
        return cls(content["corpus"], int(content["num_texts"]), uncertainties, content["head"])
