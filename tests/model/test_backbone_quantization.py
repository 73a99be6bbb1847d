"""Quantised backbones: the backbone is held in few bits, the head stays in float32, trains, and is saved alone."""

import importlib.util
import json

import pytest
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import AutoModel, BitsAndBytesConfig, TorchAoConfig

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.publishing.export import export_text_tower
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from tests.support.training import make_trainer


BACKBONES = ("tiny_clip", "tiny_siglip")


def int8() -> TorchAoConfig:
    return TorchAoConfig(Int8WeightOnlyConfig())


def dynamic_int8() -> TorchAoConfig:
    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


def bitsandbytes_int8() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True)


def bitsandbytes_nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
QUANTIZERS = [
    int8,
    dynamic_int8,
    pytest.param(bitsandbytes_int8, marks=needs_bitsandbytes),
    pytest.param(bitsandbytes_nf4, marks=needs_bitsandbytes),
]


@pytest.fixture
def backbone_folder(request, tmp_path):
    request.getfixturevalue(getattr(request, "param", "tiny_clip")).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def compose(backbone, **arguments) -> AsymVLMModel:
    torch.manual_seed(3)
    arguments = {"hidden_size": 48, "hidden_dropout_prob": 0.0, "text_pad_token_id": 1, **arguments}
    return AsymVLMModel.from_vlm_pretrained(backbone, **arguments)


def assert_only_the_backbone_is_quantized(model: AsymVLMModel) -> None:
    weights = dict(model.named_parameters())
    quantized = {
        name
        for name, weight in weights.items()
        if is_traceable_wrapper_subclass(weight) or weight.dtype in (torch.int8, torch.uint8)
    }
    for tower in ("text_model", "vision_model"):
        layers = [name for name in weights if name.startswith(f"vlm.{tower}.encoder.layers") and ".mlp.fc" in name]
        assert layers and all((name in quantized) == name.endswith("weight") for name in layers)
    assert not any(name.startswith("text_head.") for name in quantized)
    for name, weight in weights.items():
        assert weight.requires_grad == name.startswith("text_head.")
        assert weight.dtype == torch.float32 or not name.startswith("text_head.")


def logits(model: AsymVLMModel, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits_per_image


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("backbone_folder", BACKBONES, indirect=True)
def test_a_quantized_backbone_gives_nearly_its_features_and_trains_the_head(backbone_folder, batch, quantizer):
    exact, model = compose(backbone_folder), compose(backbone_folder, quantization_config=quantizer())
    assert_only_the_backbone_is_quantized(model)
    pixel_values = batch["pixel_values"]
    tokens = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    for actual, expected in (
        (model.backbone_text_features(**tokens), exact.backbone_text_features(**tokens)),
        (model.backbone_image_features(pixel_values), exact.backbone_image_features(pixel_values)),
    ):
        cosines = torch.nn.functional.cosine_similarity(actual.float(), expected)
        # Four bits leave some nine per cent of error in a weight of normal distribution, eight bits half a per cent.
        assert cosines.min() > (0.95 if quantizer is bitsandbytes_nf4 else 0.99) and not torch.equal(actual, expected)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        loss = model.train()(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is None for parameter in model.vlm.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_head_of_a_quantized_backbone_is_saved_alone_and_comes_back(backbone_folder, tmp_path, batch, quantizer):
    model = compose(backbone_folder, quantization_config=quantizer())
    model.save_pretrained(tmp_path / "head", save_backbone=False)
    assert "quantization_config" not in (tmp_path / "head" / "config.json").read_text()
    again = AutoModel.from_pretrained(tmp_path / "head", quantization_config=quantizer())
    assert_only_the_backbone_is_quantized(again)
    assert torch.equal(logits(again, batch), logits(model, batch))
    unquantized = AutoModel.from_pretrained(tmp_path / "head")
    assert {type(parameter) for parameter in unquantized.parameters()} == {torch.nn.Parameter}
    exact = compose(backbone_folder)
    exact.text_head.load_state_dict(model.text_head.state_dict())
    assert torch.equal(logits(unquantized, batch), logits(exact, batch))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_whole_checkpoint_is_quantized_on_loading(backbone_folder, tmp_path, batch, quantizer):
    compose(backbone_folder).save_pretrained(tmp_path / "whole")
    model = AutoModel.from_pretrained(tmp_path / "whole", quantization_config=quantizer())
    assert_only_the_backbone_is_quantized(model)
    assert torch.equal(logits(model, batch), logits(compose(backbone_folder, quantization_config=quantizer()), batch))


def test_quantized_weights_are_not_written(backbone_folder, tmp_path):
    model = compose(backbone_folder, quantization_config=int8())
    with pytest.raises(ValueError, match="quantised weights are not written: pass save_backbone=False"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_trainer_trains_a_head_on_a_quantized_backbone(backbone_folder, tmp_path, batch, quantizer):
    model = compose(backbone_folder, quantization_config=quantizer())
    rows = [{name: tensor[row] for name, tensor in batch.items()} for row in range(4)] * 2
    arguments = AsymVLMTrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_train_epochs=4,
        disable_tqdm=True,
        metric_for_best_model="eval_loss",  # with which the kept head has the temperature of its checkpoint
    )
    trainer = AsymVLMTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.best_metric < before
    best = AutoModel.from_pretrained(trainer.state.best_model_checkpoint, quantization_config=quantizer())
    assert torch.equal(logits(best, batch), logits(model, batch))


def test_cached_features_train_a_head_on_a_quantized_backbone(backbone_folder, tmp_path):
    trainer = make_trainer(tmp_path / "out", compose(backbone_folder, quantization_config=int8()))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_weights_that_are_quantized_already_are_refused(tiny_siglip, tmp_path):
    tiny_siglip.save_pretrained(tmp_path / "siglip")
    live = AutoModel.from_pretrained(tmp_path / "siglip", quantization_config=int8())
    live.save_pretrained(tmp_path / "quantized")
    assert "quantization_config" in json.loads((tmp_path / "quantized" / "config.json").read_text())
    for backbone in (live, tmp_path / "quantized"):
        with pytest.raises(ValueError, match="quantised already.*pass quantization_config"):
            compose(backbone)


def test_a_quantized_text_tower_is_not_exported(backbone_folder):
    with pytest.raises(ValueError, match="quantised backbone cannot be exported"):
        export_text_tower(compose(backbone_folder, quantization_config=int8()))
