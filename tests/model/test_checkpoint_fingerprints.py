"""A swapped or changed base is told from rounding, and backbones without a joint space are refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.checkpoint_fingerprints import backbone_fingerprint, check_fingerprint
from tests.support.tiny_backbones import tiny_backbone, tiny_images


@pytest.fixture
def head_only(tmp_path):
    """A head-only checkpoint and the folder of its base."""
    tiny_backbone("clip").save_pretrained(tmp_path / "base")
    AsymVLMModel.from_vlm_pretrained(tmp_path / "base").save_pretrained(tmp_path / "head", save_backbone=False)
    return tmp_path / "head", tmp_path / "base"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_same_base_is_recognised_in_every_precision(head_only, dtype, attention):
    model = AutoModel.from_pretrained(head_only[0], dtype=dtype, attn_implementation=attention)
    assert model.vlm.dtype == dtype


@pytest.mark.parametrize(
    "changed", ["text_projection.weight", "visual_projection.weight", "text_model", "vision_model"]
)
def test_a_changed_base_is_refused(head_only, changed):
    head, base = head_only
    vlm = AutoModel.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if name.startswith(changed):
                parameter.add_(0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    vlm.save_pretrained(base)
    part = "text" if "text" in changed else "image"
    with pytest.raises(ValueError, match=f"base' is not the backbone that this head was trained on: its {part} feat"):
        AutoModel.from_pretrained(head)


def test_changed_buffers_are_a_changed_base(tmp_path):
    vlm = tiny_backbone("align")
    vlm.save_pretrained(tmp_path / "base")
    AsymVLMModel.from_vlm_pretrained(tmp_path / "base").save_pretrained(tmp_path / "head", save_backbone=False)
    AutoModel.from_pretrained(tmp_path / "head")
    for name, buffer in vlm.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(1.5)
    vlm.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="image features of a fixed example differ"):
        AutoModel.from_pretrained(tmp_path / "head")


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")
def test_an_offloaded_base_is_recognised_by_its_features(head_only, tmp_path):
    on_cpu = ("text_model", "visual_projection", "text_projection", "logit_scale")
    places = {"vision_model": "disk", **dict.fromkeys(on_cpu, "cpu")}
    model = AutoModel.from_pretrained(head_only[0], device_map=places, offload_folder=tmp_path / "offload")
    expected = AutoModel.from_pretrained(head_only[0])
    images = tiny_images("clip")
    found = [each.get_image_features(**images).pooler_output for each in (model, expected)]
    torch.testing.assert_close(*found)


def test_a_changed_backbone_is_not_left_out_of_a_checkpoint(head_only, tmp_path):
    model = AutoModel.from_config(AutoConfig.from_pretrained(head_only[0]))
    with pytest.raises(ValueError, match="The model's present backbone is not the backbone that this head"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_damaged_fingerprint_is_named():
    with pytest.raises(ValueError, match="backbone_fingerprint must hold dtype, image, text, weights, got {'dtype'"):
        AsymVLMConfig(projection_dim=4, backbone_fingerprint={"dtype": "float32"})


def test_another_base_of_the_same_shape_is_refused(head_only):
    head, base = head_only
    vlm = tiny_backbone("clip")
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.copy_(parameter.flatten().flip(0).reshape(parameter.shape))
    vlm.save_pretrained(base)
    with pytest.raises(ValueError, match="is not the backbone .* Restore the original"):
        AutoModel.from_pretrained(head, dtype=torch.bfloat16)


def test_another_family_in_place_of_the_base_is_refused(head_only):
    head, base = head_only
    for file in base.iterdir():
        file.unlink()
    tiny_backbone("altclip").save_pretrained(base)
    with pytest.raises(ValueError, match="weights in backbone .*base' do not belong to this configuration: missing"):
        AutoModel.from_pretrained(head)


def test_precisions_set_the_tolerance():
    vlm = tiny_backbone("clip")
    exact, _ = backbone_fingerprint(vlm)
    check_fingerprint({**exact, "image": [0.0] * 8}, vlm, "base")  # equal weights need no second look
    other_weights = {**exact, "weights": [0.0] * 8}
    check_fingerprint(other_weights, vlm, "base")
    near = {**other_weights, "image": [1.02 * value for value in exact["image"]]}
    check_fingerprint({**near, "dtype": "bfloat16"}, vlm, "base")
    with pytest.raises(ValueError, match="image features of a fixed example differ by 0.02 .* 0.002 at most"):
        check_fingerprint(near, vlm, "base")
    with pytest.raises(ValueError, match="text features"):
        check_fingerprint({**other_weights, "text": [float("nan")] * 8}, vlm, "base")


def test_texts_and_images_of_unequal_width_are_refused():
    vlm = tiny_backbone("align")
    vlm.text_projection = torch.nn.Linear(32, 16)
    with pytest.raises(ValueError, match="AlignModel gives text features of width 16 and image features of width 32"):
        backbone_fingerprint(vlm)


def test_a_width_that_is_not_the_backbones_is_refused():
    with pytest.raises(ValueError, match="features of CLIPModel are 24 wide, but projection_dim is 32: pass proj"):
        AsymVLMModel.from_vlm_pretrained(tiny_backbone("clip"), projection_dim=32)


def test_features_that_are_not_finite_are_refused():
    vlm = tiny_backbone("clip")
    with torch.no_grad():
        vlm.visual_projection.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="CLIPModel gives image features that are not finite in torch.float32"):
        AsymVLMModel.from_vlm_pretrained(vlm)
