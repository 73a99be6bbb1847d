"""Models that are larger than a device's memory: parts on the disk or the CPU, loaded when they are called."""

import accelerate
import pytest
import torch
import transformers
from transformers import AutoModel

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.model.checkpoint_fingerprints import head_fingerprint
from modeling_asymvlm.zero_shot.classifier import ZeroShotClassifier


pytestmark = [
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning"),
    # Of the parameters of parts that transformers itself puts into the map.
    pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning"),
]

MAPS = {
    "little memory": {"device_map": "auto", "max_memory": {"cpu": 40_000}},
    "all on the disk": {"device_map": {"": "disk"}},
    "head on the disk": {"device_map": {"vlm": "cpu", "text_head": "disk"}},
    "backbone on the disk": {"device_map": {"vlm": "disk", "text_head": "cpu"}},
}


@pytest.fixture(params=["clip", "blip", "vision-text-dual-encoder"])
def family(request) -> str:
    """Not SigLIP: attention pooling in it reads weights of a layer without calling it, so that no hook brings them."""
    return request.param


def check(checkpoint, model: AsymVLMModel, folder) -> None:
    """Asserts that an offloaded model is used, saved and known like any other."""
    checkpoint.check(model)
    with torch.no_grad():
        images = {name: value for name, value in checkpoint.inputs.items() if "pixel" in name}
        features = model.get_image_features(**images).pooler_output
        expected = checkpoint.model.get_image_features(**images).pooler_output
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert model.logit_scale.item() == checkpoint.model.logit_scale.item()
    assert head_fingerprint(model) == head_fingerprint(checkpoint.model)
    model.save_pretrained(folder)
    checkpoint.check(AutoModel.from_pretrained(folder))


@pytest.fixture(scope="session")
def backbones_run_from_disk(checkpoint_of, tmp_path_factory) -> bool:
    """Whether transformers itself, of this version, runs a CLIP whose weights lie on the disk; 5.10.1 does not."""
    saved = checkpoint_of("clip", "whole")
    place = tmp_path_factory.mktemp("offloaded")
    backbone = AutoModel.from_pretrained(saved.folder.parent / "base", device_map={"": "disk"}, offload_folder=place)
    texts = {name: value for name, value in saved.inputs.items() if "pixel" not in name}
    try:
        backbone.get_text_features(**texts)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", MAPS)
def test_a_checkpoint_is_loaded_in_parts(checkpoint, tmp_path, name, backbones_run_from_disk):
    if name != "head on the disk" and not backbones_run_from_disk:
        pytest.skip(f"transformers {transformers.__version__} itself does not run a backbone from the disk")
    arguments = MAPS[name]
    model = AutoModel.from_pretrained(checkpoint.folder, offload_folder=tmp_path / "offloaded", **arguments)
    assert any(parameter.is_meta for parameter in model.parameters()) or checkpoint.folder.name == "head-only"
    check(checkpoint, model, tmp_path / "saved")


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_accelerate_offloads_a_model(checkpoint, tmp_path, place):
    model = AutoModel.from_pretrained(checkpoint.folder)
    if place == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path / "offloaded", execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    check(checkpoint, model, tmp_path / "saved")


def test_a_head_is_composed_with_an_offloaded_backbone(whole, tmp_path):
    base = whole.folder.parent / "base"
    arguments = {"hidden_size": 32, "text_pad_token_id": 1}
    model = AsymVLMModel.from_vlm_pretrained(base, device_map="cpu", **arguments)
    accelerate.cpu_offload(model.vlm, execution_device=torch.device("cpu"))
    model.text_head.load_state_dict(whole.model.text_head.state_dict())
    whole.check(model)


def test_classes_are_compared_by_an_offloaded_model(clip, tiny_processor):
    classes = {"red": ["red 1", "red 2"], "picture": ["picture 3"]}
    model = accelerate.cpu_offload(AutoModel.from_pretrained(clip.folder), execution_device=torch.device("cpu"))
    found, expected = (
        ZeroShotClassifier.from_prompts(each, tiny_processor, classes)
        .predict(image_features=each.backbone_image_features(clip.inputs["pixel_values"]))
        .logits
        for each in (model, clip.model)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
