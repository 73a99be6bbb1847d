"""The evidence correction text -> image for every method alike: by its own scores for training captions.

The scores times their scale, which is fitted on validation, are the logits; the rest is the package's calibration.
"""

from dataclasses import dataclass

import numpy as np
import torch

from modeling_asymvlm.calibration.corpus import MAX_TEXTS
from modeling_asymvlm.calibration.evidence import MAX_QUERIES, EvidenceCorrection
from modeling_asymvlm.evaluation import rank_both_ways
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .protocol import Method, Predictions, scores_with_images


@dataclass(frozen=True)
class CorrectionOfScores:
    """
    Args:
        method (`Method`): trained and fitted.
        text_features (`torch.Tensor` of shape `(references, dim)`): raw features of training captions.
    """

    method: Method
    text_features: torch.Tensor

    @classmethod
    def of(cls, method: Method, train: EmbeddingSplit) -> "CorrectionOfScores":
        """With at most 8,192 training captions, drawn with a fixed seed."""
        order = torch.randperm(len(train.captions), generator=torch.Generator().manual_seed(0))[:MAX_TEXTS]
        return cls(method, train.text_features[order.sort().values])

    def evidence(self, split: EmbeddingSplit, scale: float) -> torch.Tensor:
        """The evidence of the images of a split, `(images,)`, in nats."""
        scores = scores_with_images(self.method, self.text_features, split).double()
        return (scale * scores).logsumexp(dim=0) - float(np.log(len(self.text_features)))

    def fit(self, validation: Predictions, split: EmbeddingSplit, scale: float) -> EvidenceCorrection:
        """
        sigma and beta of least negative log-likelihood on validation. Where every caption finds its own image, nothing
        tells how much to correct, and the scores stay as they are.
        """
        if (rank_both_ways(validation.scores, split.text_image_index).text_to_image_rank == 0).all():
            return EvidenceCorrection(1.0, 0.0)
        order = torch.randperm(len(split.captions), generator=torch.Generator().manual_seed(0))[:MAX_QUERIES]
        logits = scale * validation.scores[order].double()
        return EvidenceCorrection.fit(logits, self.evidence(split, scale), split.text_image_index[order])
