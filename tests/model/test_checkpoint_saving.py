"""Composing, saving and loading: what is kept bit by bit, what stays frozen, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    AutoModelForZeroShotImageClassification,
    BertConfig,
    BertModel,
    CLIPForImageClassification,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipModel,
    VisionTextDualEncoderModel,
)

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from tests.support.tiny_backbones import tiny_backbone
from tests.support.training import learned


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def clip_folder(tiny_clip, tmp_path):
    folder = tmp_path / "clip"
    tiny_clip.save_pretrained(folder)
    return folder


@pytest.fixture
def clip_on_hub(tiny_clip, tmp_path):
    """A cache of the Hub that holds the tiny CLIP as `tests/clip`."""
    repository = tmp_path / "cache" / "models--tests--clip"
    tiny_clip.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return {"cache_dir": str(tmp_path / "cache")}


def assert_frozen(model: AsymVLMModel) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("text_head."), name
    assert not model.vlm.training


def logits(model: AsymVLMModel, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits_per_image


@pytest.mark.parametrize("backbone", ["tiny_clip", "tiny_siglip"])
def test_composing_leaves_the_live_backbone_untouched(backbone, batch, request):
    vlm = request.getfixturevalue(backbone)
    pixel_values = batch["pixel_values"]
    with torch.no_grad():
        before = (
            vlm.get_image_features(pixel_values).pooler_output,
            vlm.get_text_features(batch["input_ids"]).pooler_output,
        )
    state = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    attention = vlm.config._attn_implementation
    model = AsymVLMModel.from_vlm_pretrained(vlm, text_pad_token_id=1)
    torch.nn.init.zeros_(next(model.vlm.parameters()))
    with torch.no_grad():
        after = (
            vlm.get_image_features(pixel_values).pooler_output,
            vlm.get_text_features(batch["input_ids"]).pooler_output,
        )
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in vlm.state_dict().items())
    assert all(parameter.requires_grad for parameter in vlm.parameters())
    assert vlm.config._attn_implementation == attention
    assert_frozen(model)


@pytest.mark.parametrize("mean_direction", ["learned", "refined", "backbone"])
@pytest.mark.parametrize("save_backbone", [True, False])
def test_logits_are_bit_equal_across_saving_and_loading(clip_folder, tmp_path, batch, mean_direction, save_backbone):
    model = AsymVLMModel.from_vlm_pretrained(clip_folder, mean_direction=mean_direction, distribution="vmf")
    torch.nn.init.normal_(model.text_head.output_layer.weight)
    expected = logits(model, batch)
    folder = tmp_path / "saved"
    model.save_pretrained(folder, save_backbone=save_backbone)
    saved = load_file(folder / "model.safetensors")
    assert save_backbone == any(name.startswith("vlm.") for name in saved)
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification, AsymVLMModel):
        loaded = auto_class.from_pretrained(folder)
        assert isinstance(loaded, AsymVLMModel)
        assert torch.equal(logits(loaded, batch), expected)
        assert_frozen(loaded)
        assert loaded.name_or_path == str(folder)


def test_logits_are_bit_equal_in_a_new_process(clip_folder, tmp_path, batch):
    model = AsymVLMModel.from_vlm_pretrained(clip_folder)
    model.save_pretrained(tmp_path / "saved")
    save_file({**batch, "expected": logits(model, batch).contiguous()}, tmp_path / "batch.safetensors")
    program = (
        "import sys, torch, modeling_asymvlm\n"
        "from safetensors.torch import load_file\nfrom transformers import AutoModel\n"
        "batch = load_file(sys.argv[2])\nexpected = batch.pop('expected')\n"
        "with torch.no_grad():\n    actual = AutoModel.from_pretrained(sys.argv[1])(**batch).logits_per_image\n"
        "print(torch.equal(actual, expected))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "saved"), str(tmp_path / "batch.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_a_backbone_from_the_hub_is_named_with_its_commit_and_left_out(clip_on_hub, tmp_path, batch):
    model = AsymVLMModel.from_vlm_pretrained("tests/clip", **clip_on_hub)
    assert (model.config.base_model_name_or_path, model.config.base_model_revision) == ("tests/clip", COMMIT)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    assert all(name.startswith("text_head.") for name in load_file(folder / "model.safetensors"))
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True, **clip_on_hub)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert not info["missing_keys"]
    assert_frozen(loaded)
    with pytest.raises(OSError):  # without the cache there is no such backbone: nothing is made up
        AutoModel.from_pretrained(folder, cache_dir=str(tmp_path / "empty"))


def test_a_folder_of_this_machine_does_not_leak_into_the_configuration(clip_folder, tmp_path):
    model = AsymVLMModel.from_vlm_pretrained(clip_folder)
    model.save_pretrained(tmp_path / "saved")
    assert any(name.startswith("vlm.") for name in load_file(tmp_path / "saved" / "model.safetensors"))
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    assert model.config.base_model_name_or_path == str(clip_folder)


def test_the_folders_of_the_towers_do_not_leak_either(tmp_path):
    vlm = tiny_backbone("vision-text-dual-encoder")
    for name, tower in (("vision", vlm.vision_model), ("text", vlm.text_model)):
        tower.save_pretrained(tmp_path / name)
    vlm = VisionTextDualEncoderModel.from_vision_text_pretrained(
        tmp_path / "vision", tmp_path / "text", projection_dim=24
    )
    AsymVLMModel.from_vlm_pretrained(vlm).save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_a_head_whose_backbone_is_a_folder_is_not_pushed(clip_folder):
    model = AsymVLMModel.from_vlm_pretrained(clip_folder)
    model.config.save_backbone = False
    for push in (lambda: model.push_to_hub("tests/one"), lambda: model.save_pretrained("unused", push_to_hub=True)):
        with pytest.raises(ValueError, match="clip' is not at a commit on the Hub, .*or set config.save_backbone"):
            push()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float33"}, "dtype must be 'auto' or name a dtype of torch.* got 'float33'"),
        ({"revision": "main"}, "revision and device_map say how to load a backbone, but a live one"),
        ({"device_map": "auto"}, "revision and device_map say how to load a backbone, but a live one"),
    ],
)
def test_arguments_that_a_live_backbone_cannot_take_are_named(tiny_clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        AsymVLMModel.from_vlm_pretrained(tiny_clip, **arguments)


def test_what_is_no_backbone_is_named():
    with pytest.raises(TypeError, match="vlm must be a name, a folder or a live `PreTrainedModel`, got Linear"):
        AsymVLMModel.from_vlm_pretrained(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="A CLIPForImageClassification has no joint space .*: pass a CLIPModel"):
        AsymVLMModel.from_vlm_pretrained(CLIPForImageClassification(tiny_backbone("clip").config))


def test_a_folder_of_the_hubs_cache_is_a_folder(clip_on_hub, tmp_path):
    snapshot = tmp_path / "cache" / "models--tests--clip" / "snapshots" / COMMIT
    assert AsymVLMModel.from_vlm_pretrained(snapshot).config.base_model_revision is None


def test_head_only_needs_a_source_of_the_backbone(tiny_clip, tmp_path):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    with pytest.raises(ValueError, match="must name its backbone"):
        model.save_pretrained(tmp_path / "saved", save_backbone=False)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("save_backbone", [True, False])
def test_a_half_precision_backbone_keeps_its_dtype_and_a_float32_head(
    clip_folder, tmp_path, batch, dtype, save_backbone
):
    model = AsymVLMModel.from_vlm_pretrained(clip_folder, dtype=dtype)
    model.save_pretrained(tmp_path / "saved", save_backbone=save_backbone)
    for loaded in (model, AutoModel.from_pretrained(tmp_path / "saved")):
        assert {parameter.dtype for parameter in loaded.vlm.parameters()} == {dtype}
        assert {parameter.dtype for parameter in loaded.text_head.parameters()} == {torch.float32}
        assert torch.equal(logits(loaded, batch), logits(model, batch))
    in_float32 = AutoModel.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert {parameter.dtype for parameter in in_float32.parameters()} == {torch.float32}


@pytest.mark.parametrize("save_backbone", [True, False])
@pytest.mark.parametrize("removed", ["text_head.output_layer.weight", "vlm.visual_projection.weight"])
def test_missing_weights_are_an_error(clip_folder, tmp_path, save_backbone, removed):
    folder = tmp_path / "saved"
    AsymVLMModel.from_vlm_pretrained(clip_folder).save_pretrained(folder, save_backbone=save_backbone)
    file = folder / "model.safetensors"
    if removed.startswith("vlm.") and not save_backbone:
        file, removed = clip_folder / "model.safetensors", removed.removeprefix("vlm.")
    weights = load_file(file)
    del weights[removed]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing keys .*{removed}"):
        AutoModel.from_pretrained(folder)


def test_unexpected_and_misshaped_weights_are_an_error(clip_folder, tmp_path):
    folder = tmp_path / "saved"
    AsymVLMModel.from_vlm_pretrained(clip_folder, **learned()).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "text_head.extra": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="unexpected keys text_head.extra"):
        AutoModel.from_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 512}))
    with pytest.raises((ValueError, RuntimeError), match="text_head|mismatch"):
        AutoModel.from_pretrained(folder)


def test_a_model_that_is_no_backbone_is_refused_before_its_weights_are_read(tmp_path):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    BertModel(config).save_pretrained(tmp_path)
    os.remove(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'bert' is not an image–text model"):
        AsymVLMModel.from_vlm_pretrained(tmp_path)


def test_unknown_arguments_and_folders_are_named(tiny_clip, tmp_path):
    with pytest.raises(TypeError, match="AsymVLMConfig has no argument hiden_size"):
        AsymVLMModel.from_vlm_pretrained(tiny_clip, hiden_size=3)
    with pytest.raises(ValueError, match="Unknown distribution 'gauss'"):
        AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution="gauss")
    with pytest.raises(OSError):
        AsymVLMModel.from_vlm_pretrained(tmp_path / "nothing")


def test_the_padding_token_of_siglip_comes_from_its_tokenizer(tiny_siglip, tmp_path):
    tiny_siglip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Pass text_pad_token_id"):
        AsymVLMModel.from_vlm_pretrained(tmp_path)
    words = {"<unk>": 0, "</s>": 1, "<pad>": 2}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    assert AsymVLMModel.from_vlm_pretrained(tmp_path).config.text_pad_token_id == 2
    assert AsymVLMModel.from_vlm_pretrained(tmp_path, text_pad_token_id=7).config.text_pad_token_id == 7


def test_no_tensor_is_left_out_of_the_state_dict():
    """Tensors that are neither parameters nor persistent buffers come back from loading as garbage."""
    model = AsymVLMModel(AsymVLMConfig(projection_dim=8))
    assert not list(model.text_head.buffers())
    for module in model.text_head.modules():
        assert not any(isinstance(value, torch.Tensor) for value in vars(module).values())


def test_the_backbones_attention_implementation_reaches_its_towers(clip_folder, batch):
    eager = AsymVLMModel.from_vlm_pretrained(clip_folder, attn_implementation="eager")
    assert eager.vlm.text_model.config._attn_implementation == "eager"
    assert isinstance(eager.vlm, CLIPModel) and not isinstance(eager.vlm, SiglipModel)
