"""Half precision, autocast, placement on a device and gradient checkpointing: the head's float32 results stay."""

import pytest
import torch
from transformers import AutoModel

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from tests.support.training import learned


@pytest.fixture
def composed(tiny_clip, tmp_path) -> AsymVLMModel:
    torch.manual_seed(3)
    tiny_clip.save_pretrained(tmp_path / "clip")
    return AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", **learned(hidden_size=48, hidden_dropout_prob=0.0))


@pytest.fixture(params=[True, False], ids=["whole", "head-only"])
def folder(request, composed, tmp_path):
    composed.save_pretrained(tmp_path / "saved", save_backbone=request.param)
    return tmp_path / "saved"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distribution", ["vmf", "power_spherical"])
def test_a_float32_checkpoint_loads_in_half_precision_with_a_float32_head(folder, batch, dtype, distribution):
    model = AutoModel.from_pretrained(folder, dtype=dtype, distribution=distribution)
    assert {parameter.dtype for parameter in model.vlm.parameters()} == {dtype}
    assert {parameter.dtype for parameter in model.text_head.parameters()} == {torch.float32}
    exact = AutoModel.from_pretrained(folder, distribution=distribution)
    with torch.no_grad():
        output, expected = model(**batch, return_loss=True), exact(**batch, return_loss=True)
    assert all(output[name].dtype == torch.float32 and output[name].isfinite().all() for name in output)
    # What is left is the rounding of the backbone's features to 8 or 11 significant bits.
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(output.concentration, expected.concentration, rtol=8 * precision, atol=0)
    cosines = torch.nn.functional.cosine_similarity(output.image_embeds, expected.image_embeds)
    assert (1 - cosines).max() < precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_moves_neither_the_head_nor_the_logits_by_a_bit(composed, batch, dtype):
    composed.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        features = {
            "image_features": composed.backbone_image_features(batch.pop("pixel_values")),
            "text_features": composed.backbone_text_features(**batch),
        }
        assert {tensor.dtype for tensor in features.values()} == {dtype}  # the backbone's matrices are autocast
        inside = composed(**features, return_loss=True)
    with torch.no_grad():
        outside = composed(**features, return_loss=True)
    for name in ("loss", "logits_per_image", "text_embeds", "image_embeds", "concentration"):
        assert inside[name].dtype == torch.float32
        assert torch.equal(inside[name], outside[name]), name


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_device_map_of_one_device_changes_nothing(composed, folder, tmp_path, batch, device_map):
    models = [
        AutoModel.from_pretrained(folder, device_map=device_map),
        AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", **learned(hidden_size=48), device_map=device_map),
    ]
    models[1].text_head.load_state_dict(composed.text_head.state_dict())
    with torch.no_grad():
        expected = composed.eval()(**batch).logits_per_image
        for model in models:
            assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
            assert torch.equal(model.eval()(**batch).logits_per_image, expected)
            learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
            assert learning == [name for name in model.state_dict() if name.startswith("text_head.")]


def loss_and_gradients(model: AsymVLMModel, batch: dict) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model.train()(**batch, return_loss=True).loss
    loss.backward()
    assert all(parameter.grad is None for parameter in model.vlm.parameters())
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.text_head.parameters())]


def test_gradient_checkpointing_changes_neither_the_loss_nor_the_gradients(composed, batch, recwarn):
    expected = loss_and_gradients(composed, batch)
    composed.gradient_checkpointing_enable()
    for actual, value in zip(loss_and_gradients(composed, batch), expected, strict=True):
        assert torch.equal(actual, value)
    composed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for actual, value in zip(loss_and_gradients(composed, batch), expected, strict=True):
        assert torch.equal(actual, value)
    assert not recwarn.list


# transformers 5.23 renames the argument.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_the_trainer_takes_gradient_checkpointing(composed, tmp_path, batch):
    rows = [{name: tensor[row] for name, tensor in batch.items()} for row in range(4)] * 2
    heads = []
    for checkpointing in (False, True):
        model = AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", **learned(hidden_size=48, hidden_dropout_prob=0.0))
        model.text_head.load_state_dict(composed.text_head.state_dict())
        arguments = AsymVLMTrainingArguments(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
            gradient_checkpointing=checkpointing,
        )
        AsymVLMTrainer(model=model, args=arguments, train_dataset=rows).train()
        heads.append(model.text_head.state_dict())
    moved = composed.text_head.state_dict()
    for parameter, tensor in heads[0].items():
        assert torch.equal(heads[1][parameter], tensor)
        assert not torch.equal(moved[parameter], tensor)
