"""Calibrations of tiny heads, on pairs made on the spot."""

from dataclasses import replace

import torch

from modeling_asymvlm import AsymVLMModel, Calibration
from modeling_asymvlm.calibration.reference import UncertaintyReference
from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from tests.support.training import make_pairs


def make_calibration(
    model: AsymVLMModel, *, concentration=None, corpus: str = "numbers", trusted: bool = False
) -> Calibration:
    """
    A calibration of a model's head; the percentiles are those among `concentration`, by default those of its own
    held-out captions. With `trusted`, half of the captions say nothing of their image and have a feature that tells
    so, so that a text foretells whether its image is found.
    """
    dim = model.config.projection_dim
    train, validation = (
        make_pairs(seed, images, texts, dim=dim).split for seed, images, texts in ((11, 80, 160), (12, 40, 80))
    )
    if trusted:
        train, validation = _half_vague(train), _half_vague(validation)
    calibration = Calibration.fit(model, train, validation, corpus=corpus)
    if concentration is None:
        return calibration
    reference = UncertaintyReference.from_concentration(torch.as_tensor(concentration), model, corpus=corpus)
    return replace(calibration, reference=reference)


def _half_vague(split: EmbeddingSplit) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(len(split.captions))
    vague = torch.randn(len(split.captions), split.dim, generator=generator)
    vague[:, 0] = 6.0
    is_vague = torch.rand(len(vague), 1, generator=generator) < 0.5
    return replace(split, text_features=torch.where(is_vague, vague, split.text_features))
