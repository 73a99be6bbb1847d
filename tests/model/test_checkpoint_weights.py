"""Head-only checkpoints in one file, in shards and in variants; files that are damaged or lie elsewhere."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.model.checkpoint_digests import check_digest, seal_weights
from tests.support.tiny_backbones import tiny_backbone, tiny_images, tiny_texts


@pytest.fixture
def base(tmp_path):
    tiny_backbone("clip").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits(model):
    with torch.no_grad():
        return model.eval()(**tiny_texts("clip"), **tiny_images("clip")).logits_per_image


@pytest.mark.parametrize("save_backbone", [True, False])
@pytest.mark.parametrize("saving", [{"max_shard_size": "20KB"}, {"variant": "small"}, {}])
def test_shards_and_variants_come_back_bit_by_bit(base, tmp_path, save_backbone, saving):
    model = AsymVLMModel.from_vlm_pretrained(base, hidden_size=64, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "saved", save_backbone=save_backbone, **saving)
    files = [file.name for file in (tmp_path / "saved").glob("*.safetensors")]
    assert (len(files) > 1) == ("max_shard_size" in saving)
    loaded = AutoModel.from_pretrained(tmp_path / "saved", variant=saving.get("variant"))
    assert torch.equal(logits(loaded), logits(model))


def test_a_single_file_replaces_shards_of_before(base, tmp_path):
    model = AsymVLMModel.from_vlm_pretrained(base, hidden_size=64, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "saved", save_backbone=False, max_shard_size="20KB")
    torch.nn.init.normal_(model.text_head.output_layer.weight)
    model.save_pretrained(tmp_path / "saved", save_backbone=False)
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "saved")), logits(model))


def test_a_base_that_has_moved_is_named_with_the_remedy(base, tmp_path):
    AsymVLMModel.from_vlm_pretrained(base).save_pretrained(tmp_path / "saved", save_backbone=False)
    base.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="the head alone, and its backbone .*base' cannot be .*\n.*has moved, pass"):
        AutoModel.from_pretrained(tmp_path / "saved")
    AutoModel.from_pretrained(tmp_path / "saved", base_model_name_or_path=str(tmp_path / "moved"))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="holds the head alone and does not name its backbone: pass base_model_name"):
        AutoModel.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
@pytest.mark.parametrize("save_backbone", [True, False])
def test_an_index_that_is_none_is_named(base, tmp_path, content, save_backbone):
    model = AsymVLMModel.from_vlm_pretrained(base, hidden_size=64, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "saved", save_backbone=save_backbone, max_shard_size="20KB")
    (tmp_path / "saved" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="is no index of weights .*: download or save it again"):
        AutoModel.from_pretrained(tmp_path / "saved")


def test_the_shards_of_a_variant_lie_beside_their_index_too(base, tmp_path):
    model = AsymVLMModel.from_vlm_pretrained(base, hidden_size=64, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB", variant="small")
    index = tmp_path / "saved" / "model.safetensors.index.small.json"
    content = json.loads(index.read_text())
    content["weight_map"]["text_head.output_layer.bias"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names the file '../elsewhere.safetensors', which does not lie beside it"):
        AutoModel.from_pretrained(tmp_path / "saved", variant="small")


@pytest.mark.parametrize("save_backbone", [True, False])
def test_a_file_cut_short_is_named(base, tmp_path, save_backbone):
    AsymVLMModel.from_vlm_pretrained(base).save_pretrained(tmp_path / "saved", save_backbone=save_backbone)
    file = tmp_path / "saved" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="weights in checkpoint .*saved' are damaged or cut short .*download or save"):
        AutoModel.from_pretrained(tmp_path / "saved")


def test_a_base_cut_short_is_named(base, tmp_path):
    AsymVLMModel.from_vlm_pretrained(base).save_pretrained(tmp_path / "saved", save_backbone=False)
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    for load in (
        lambda: AutoModel.from_pretrained(tmp_path / "saved"),
        lambda: AsymVLMModel.from_vlm_pretrained(base),
    ):
        with pytest.raises(ValueError, match="weights in backbone .*base' are damaged or cut short"):
            load()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../elsewhere.safetensors", "does not lie beside it"),
        ("/etc/passwd", "does not lie beside it"),
        ("a/b.safetensors", "does not lie beside it"),
        ("head.bin", "weights are read from safetensors files alone"),
    ],
)
def test_an_index_that_names_other_files_is_refused(base, tmp_path, name, reason):
    model = AsymVLMModel.from_vlm_pretrained(base, hidden_size=64, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "saved", save_backbone=False, max_shard_size="20KB")
    index = tmp_path / "saved" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["text_head.output_layer.bias"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"names the file '{name}', .*{reason}"):
        AutoModel.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("save_backbone", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_any_flipped_bit_of_the_weights_is_told(save_backbone, max_shard_size, base, tmp_path):
    model = AsymVLMModel.from_vlm_pretrained(base, hidden_size=64, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "it", save_backbone=save_backbone, max_shard_size=max_shard_size)
    files = sorted((tmp_path / "it").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size == "20KB")
    assert {file.stat().st_mode for file in files} == {(tmp_path / "it" / "config.json").stat().st_mode}
    again = AsymVLMModel.from_pretrained(tmp_path / "it").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    generator = np.random.default_rng(0)
    for file in files[:3]:
        content = file.read_bytes()
        first = 8 + int.from_bytes(content[:8], "little")  # behind the header
        for position in generator.integers(first, len(content), 2):
            damaged = bytearray(content)
            damaged[position] ^= 1 << generator.integers(8)
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="weights in checkpoint .*it' are damaged.*Download or save"):
                AsymVLMModel.from_pretrained(tmp_path / "it")
        file.write_bytes(content)


def test_tensors_that_changed_places_are_told(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "it.safetensors")
    seal_weights([tmp_path / "it.safetensors"], 0o644)
    check_digest(tmp_path / "it.safetensors", "it")
    content = (tmp_path / "it.safetensors").read_bytes()
    swapped = content.replace(b'"a":', b'"c":').replace(b'"b":', b'"a":').replace(b'"c":', b'"b":')
    (tmp_path / "it.safetensors").write_bytes(swapped)
    with pytest.raises(ValueError, match="weights in it are damaged"):
        check_digest(tmp_path / "it.safetensors", "it")
