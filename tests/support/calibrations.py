"""Calibrations of tiny heads, on pairs made on the spot."""

from dataclasses import replace

import torch

from modeling_asymvlm import AsymVLMModel, Calibration
from modeling_asymvlm.calibration.reference import UncertaintyReference
from tests.support.training import make_pairs


def make_calibration(model: AsymVLMModel, *, concentration=None, corpus: str = "numbers") -> Calibration:
    """
    A calibration of a model's head; the percentiles are those among `concentration`, by default those of its own
    held-out captions.
    """
    dim = model.config.projection_dim
    train, validation = (
        make_pairs(seed, images, texts, dim=dim).split for seed, images, texts in ((11, 80, 160), (12, 40, 80))
    )
    calibration = Calibration.fit(model, train, validation, corpus=corpus)
    if concentration is None:
        return calibration
    reference = UncertaintyReference.from_concentration(torch.as_tensor(concentration), model, corpus=corpus)
    return replace(calibration, reference=reference)
