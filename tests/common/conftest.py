"""Checkpoints of a head on tiny backbones of four families, written once, whole and head-only."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from modeling_asymvlm import AsymVLMModel
from tests.support.tiny_backbones import tiny_backbone, tiny_images, tiny_texts


FAMILIES = ("clip", "siglip", "blip", "vision-text-dual-encoder")
KINDS = ("whole", "head-only")


@dataclass
class Checkpoint:
    """A checkpoint in `folder`, the `model` that was saved, its `inputs` and the `logits` (texts, images) of them."""

    family: str
    folder: Path
    model: AsymVLMModel
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor

    def check(self, model: AsymVLMModel, atol: float = 1e-5) -> None:
        """Asserts that a model gives the logits of the one that was saved."""
        with torch.no_grad():
            logits = model(**self.inputs, return_dict=True).logits_per_text
        torch.testing.assert_close(logits.float(), self.logits, rtol=0, atol=atol)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """The checkpoint of a family and kind; its model is shared, so that a test that changes one loads its own."""

    @cache
    def composed(family: str) -> tuple[Path, AsymVLMModel]:
        folder = tmp_path_factory.mktemp(family)
        tiny_backbone(family).save_pretrained(folder / "base")
        torch.manual_seed(3)
        model = AsymVLMModel.from_vlm_pretrained(folder / "base", hidden_size=32, text_pad_token_id=1)
        torch.nn.init.normal_(model.text_head.output_layer.weight, std=0.1)
        for kind in KINDS:
            model.save_pretrained(folder / kind, save_backbone=kind == "whole")
        return folder, model

    @cache
    def checkpoint(family: str, kind: str) -> Checkpoint:
        folder, model = composed(family)
        inputs = {**tiny_texts(family), **tiny_images(family)}
        with torch.no_grad():
            logits = model(**inputs).logits_per_text
        return Checkpoint(family, folder / kind, model, inputs, logits)

    return checkpoint


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def checkpoint(checkpoint_of, family, kind) -> Checkpoint:
    return checkpoint_of(family, kind)


@pytest.fixture
def whole(checkpoint_of, family) -> Checkpoint:
    """A whole checkpoint of each family."""
    return checkpoint_of(family, "whole")


@pytest.fixture
def clip(checkpoint_of, kind) -> Checkpoint:
    """A checkpoint on CLIP, of each kind."""
    return checkpoint_of("clip", kind)
