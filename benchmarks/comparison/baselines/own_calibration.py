"""What the package's own calibration says of texts alone, as an uncertainty of the comparison."""

import torch

from modeling_asymvlm import AsymVLMModel, Calibration
from modeling_asymvlm.calibration.fitting import MIN_HELD_OUT
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


class OwnCalibration:
    """
    The calibration of a head; without one where the validation split is too small for any.

    Args:
        model (`AsymVLMModel`): in evaluation mode.
        splits (`dict[str, EmbeddingSplit]`): with `train` and `validation`.
    """

    def __init__(self, model: AsymVLMModel, splits: dict[str, EmbeddingSplit]):
        self.calibration: Calibration | None = None
        if min(len(splits["validation"].captions), len(splits["validation"].image_ids)) >= MIN_HELD_OUT:
            self.calibration = Calibration.fit(model, splits["train"], splits["validation"])

    def of_texts(self, text_features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Trusted or not: the probability that the first result is wrong, `(texts,)`, by its name."""
        if self.calibration is None:
            return {}
        return {"text confidence": 1 - torch.from_numpy(self.calibration.text_probability(text_features))}
