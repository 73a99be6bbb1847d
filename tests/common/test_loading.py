"""`from_pretrained` as transformers' users call it, on whole and head-only checkpoints: dtypes, devices, options."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, CLIPModel

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel


CALLS = {
    "nothing": {},
    "dtype auto": {"dtype": "auto"},
    "torch_dtype auto": {"torch_dtype": "auto"},
    "dtype None": {"dtype": None},
    "dtype float32": {"dtype": torch.float32},
    "dtype string": {"dtype": "float32"},
    "torch_dtype": {"torch_dtype": torch.float32},
    "eager": {"attn_implementation": "eager"},
    "sdpa": {"attn_implementation": "sdpa"},
    "eager by part": {"attn_implementation": {"vlm_config": "eager"}},
    "device_map cpu": {"device_map": "cpu"},
    "device_map auto": {"device_map": "auto"},
    "device_map dictionary": {"device_map": {"": "cpu"}},
    "device_map device": {"device_map": torch.device("cpu")},
    "device_map by part": {"device_map": {"vlm": "cpu", "text_head": "cpu"}},
    "device_map and dtype": {"device_map": "auto", "dtype": "auto"},
    "max_memory": {"device_map": "auto", "max_memory": {"cpu": "2GB"}},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "use_safetensors": {"use_safetensors": True},
    "local_files_only": {"local_files_only": True},
    "token": {"token": False},
    "trust_remote_code": {"trust_remote_code": True},
    "trust_remote_code off": {"trust_remote_code": False},
    "force_download": {"force_download": False},
    "revision": {"revision": "main"},
    "ignore_mismatched_sizes": {"ignore_mismatched_sizes": True},
    "output_attentions": {"output_attentions": False},
    "field of the head": {"hidden_dropout_prob": 0.1},
}


@pytest.mark.parametrize("loader", [AsymVLMModel, AutoModel], ids=lambda loader: loader.__name__)
@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_every_call_gives_the_model_that_was_saved(clip, loader, arguments):
    model = loader.from_pretrained(clip.folder, **arguments)
    clip.check(model)
    assert model.config.dtype == model.vlm.dtype == torch.float32
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name in model.state_dict() if name.startswith("text_head.")}
    assert not any(module.training for module in model.modules())


BOTH_DTYPES = {"dtype": torch.float32, "torch_dtype": torch.float16}


@pytest.mark.parametrize("loader", [AsymVLMModel, AutoModel], ids=lambda loader: loader.__name__)
def test_of_two_dtypes_the_one_is_taken_that_backbones_take(clip, loader):
    of_backbone = {AsymVLMModel: CLIPModel, AutoModel: AutoModel}[loader]  # which differ in transformers 5.10.1
    expected = of_backbone.from_pretrained(clip.folder.parent / "base", **BOTH_DTYPES)
    model = loader.from_pretrained(clip.folder, **BOTH_DTYPES)
    assert model.config.dtype == model.vlm.dtype == expected.dtype


def test_every_family_loads_through_every_auto_class(checkpoint):
    for loader in (AutoModel, AutoModelForZeroShotImageClassification, AsymVLMModel):
        checkpoint.check(loader.from_pretrained(checkpoint.folder))


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "float16", "bfloat16"])
def test_a_dtype_is_that_of_the_backbone_and_of_the_configuration(clip, argument, dtype):
    model = AsymVLMModel.from_pretrained(clip.folder, **{argument: dtype})
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert model.config.dtype == model.vlm.dtype == expected
    assert {parameter.dtype for parameter in model.text_head.parameters()} == {torch.float32}


def test_auto_is_the_dtype_that_was_saved(clip, tmp_path):
    AsymVLMModel.from_pretrained(clip.folder, dtype="bfloat16").save_pretrained(tmp_path)
    for arguments in ({}, {"dtype": "auto"}, {"torch_dtype": "auto"}):
        model = AsymVLMModel.from_pretrained(tmp_path, **arguments)
        assert model.config.dtype == model.vlm.dtype == torch.bfloat16


def test_saving_and_loading_again_changes_no_weight(checkpoint, tmp_path):
    model = AutoModel.from_pretrained(checkpoint.folder)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    expected = checkpoint.model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_a_configuration_may_be_passed_along(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint.folder)
    before = config.to_dict()
    checkpoint.check(AsymVLMModel.from_pretrained(checkpoint.folder, config=config))
    checkpoint.check(AsymVLMModel.from_pretrained(checkpoint.folder, config=checkpoint.folder))
    assert config.to_dict() == before


def test_copies_and_configurations_through_memory_are_the_same(checkpoint):
    checkpoint.check(copy.deepcopy(checkpoint.model))
    config = checkpoint.model.config
    for other in (copy.deepcopy(config), AsymVLMConfig(**config.to_dict())):
        assert other.to_dict() == config.to_dict()


def test_a_backbone_is_told_from_a_checkpoint(checkpoint, tmp_path):
    base = checkpoint.folder.parent / "base"
    with pytest.raises(ValueError, match=f"a model of type '{checkpoint.family}'.*AsymVLMModel.from_vlm_pretrained"):
        AsymVLMModel.from_pretrained(base)
    with pytest.raises(ValueError, match="from_vlm_pretrained"):
        AsymVLMConfig.from_pretrained(base)
