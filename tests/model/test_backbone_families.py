"""The same conformance test for every supported family of backbones."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.model import text_inputs as text_contract
from modeling_asymvlm.model.checkpoint_code import published
from tests.support.tiny_backbones import (
    CONTEXT,
    FAMILIES,
    WITHOUT_TEXT_MASK,
    native_features,
    tiny_backbone,
    tiny_images,
    tiny_texts,
)


pytestmark = pytest.mark.filterwarnings("ignore:.*is not a valid JSON:UserWarning")


def compose(vlm):
    torch.manual_seed(3)
    return AsymVLMModel.from_vlm_pretrained(
        vlm, distribution="vmf", hidden_size=16, text_pad_token_id=vlm.config.text_config.pad_token_id
    ).eval()


def features(model: AsymVLMModel, texts: dict, images: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return model.backbone_text_features(**texts), model.backbone_image_features(**images)


def assert_equal(family: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if family == "align":
        # torch's convolutions take other paths for weights read from a file, which are not aligned in memory, so that
        # AlignModel itself is not bit-equal either.
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    else:
        assert torch.equal(found, expected), family


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_backbones_own_through_composing_saving_and_loading(family, tmp_path):
    vlm, texts, images = tiny_backbone(family), tiny_texts(family), tiny_images(family)
    native = native_features(vlm, texts, images)
    for part in native:
        assert part.norm(dim=-1).min() > 1e-3 and torch.pdist(part).min() > 1e-3  # something to compare
    before = copy.deepcopy(vlm.state_dict())
    model = compose(vlm)
    vlm.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "whole")
    model.config.base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "head", save_backbone=False)
    stored = {folder: sum(f.stat().st_size for f in (tmp_path / folder).iterdir()) for folder in ("whole", "head")}
    assert stored["head"] < stored["whole"] / 2

    with torch.no_grad():
        logits = model(**texts, **images).logits_per_image
        for loaded in (
            model,
            AsymVLMModel.from_pretrained(tmp_path / "whole"),
            AutoModel.from_pretrained(tmp_path / "whole"),
            AutoModel.from_pretrained(tmp_path / "head"),
        ):
            for found, expected in zip(features(loaded, texts, images), native, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
            assert_equal(family, loaded(**texts, **images).logits_per_image, logits)
            trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
            assert trainable and all(name.startswith("text_head.") for name in trainable)
            assert not any(module.training for module in loaded.vlm.modules())
            assert type(loaded.vlm) is type(vlm)

    assert all(torch.equal(before[name], tensor) for name, tensor in vlm.state_dict().items())
    assert all(parameter.requires_grad for parameter in vlm.parameters())
    for found, expected in zip(native_features(vlm, texts, images), native, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_gives_the_same_features_however_it_is_padded(family):
    model, texts = compose(tiny_backbone(family)), tiny_texts(family)
    together = model.backbone_text_features(**texts)
    lengths = texts["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        real = texts["input_ids"][row : row + 1, :length]
        left = torch.cat([torch.full((1, 4), model.config.vlm_config.text_config.pad_token_id or 0), real], dim=1)
        mask = torch.tensor([[0] * 4 + [1] * length])
        for alone in (
            model.backbone_text_features(real, torch.ones_like(real)),
            model.backbone_text_features(left, mask),
        ):
            torch.testing.assert_close(alone[0], together[row], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_of_the_whole_context_fits_and_a_longer_one_is_cut(family, monkeypatch):
    warnings = []
    monkeypatch.setattr(text_contract.logger, "warning_once", warnings.append)
    model = compose(tiny_backbone(family))
    assert model.config.text_max_length == CONTEXT
    long = torch.randint(3, 97, (1, CONTEXT + 9), generator=torch.Generator().manual_seed(4))
    long[0, -1] = 98
    cut = torch.cat([long[:, : CONTEXT - 1], long[:, -1:]], dim=1)
    full = model.backbone_text_features(cut, torch.ones_like(cut))
    assert not warnings
    assert torch.equal(model.backbone_text_features(long, torch.ones_like(long)), full)
    assert len(warnings) == 1 and "are truncated to the backbone's context of 16 tokens" in warnings[0]


@pytest.mark.parametrize("family", WITHOUT_TEXT_MASK)
def test_texts_without_a_mask_are_cut_at_their_padding(family):
    model = compose(tiny_backbone(family))
    long = torch.randint(3, 97, (2, CONTEXT + 4), generator=torch.Generator().manual_seed(5))
    long[1, CONTEXT:] = model.config.text_pad_token_id  # just fits
    mask = torch.ones_like(long)
    mask[1, CONTEXT:] = 0
    assert torch.equal(model.backbone_text_features(long), model.backbone_text_features(long, mask))


ISOLATED = """
import sys
sys.modules["modeling_asymvlm"] = None  # any import of the package fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

for folder in sys.argv[1:]:
    texts, images = load_file(folder + "/texts.safetensors"), load_file(folder + "/images.safetensors")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    text, image = model.backbone_text_features(**texts), model.backbone_image_features(**images)
    with torch.no_grad():
        logits = model(**texts, **images).logits_per_image.contiguous()
    outputs = {"text": text.contiguous(), "image": image.contiguous(), "logits": logits}
    save_file(outputs, folder + "/outputs.safetensors")
"""


def test_published_code_gives_every_family_its_own_features_without_this_package(tmp_path):
    expected = {}
    for family in FAMILIES:
        vlm, texts, images = tiny_backbone(family), tiny_texts(family), tiny_images(family)
        model = compose(vlm)
        with published(model.config), torch.no_grad():
            model.save_pretrained(tmp_path / family)
            logits = model(**texts, **images).logits_per_image
        save_file(texts, tmp_path / family / "texts.safetensors")
        save_file(images, tmp_path / family / "images.safetensors")
        expected[family] = (*native_features(vlm, texts, images), logits)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", ISOLATED, *(str(tmp_path / family) for family in FAMILIES)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for family, (text, image, logits) in expected.items():
        found = load_file(tmp_path / family / "outputs.safetensors")
        torch.testing.assert_close(found["text"], text, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["image"], image, atol=1e-6, rtol=1e-6)
        assert_equal(family, found["logits"], logits)
