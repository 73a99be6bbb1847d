"""PEFT: adapters on the head learn, are saved and come back; adapters in the frozen backbone are refused."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from modeling_asymvlm import AsymVLMModel
from tests.support.training import learned, make_pairs, make_trainer


HEAD = r"text_head\.(hidden_layers\.\d+|output_layer)"
BACKBONE = r"vlm\..*\.(q_proj|v_proj)"

# PEFT asks transformers for a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def save_model(vlm, tmp_path, save_backbone: bool):
    torch.manual_seed(3)
    vlm.save_pretrained(tmp_path / "clip")
    head = learned(hidden_size=48, num_hidden_layers=3, hidden_dropout_prob=0.0)
    model = AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", **head)
    model.save_pretrained(tmp_path / "model", save_backbone=save_backbone)
    return tmp_path / "model"


@pytest.fixture
def folder(tiny_clip, tmp_path):
    return save_model(tiny_clip, tmp_path, save_backbone=True)


def with_adapters(folder, target_modules: str) -> PeftModel:
    torch.manual_seed(4)
    return get_peft_model(AutoModel.from_pretrained(folder), LoraConfig(target_modules=target_modules, r=4))


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits_per_image


def test_adapters_on_the_head_learn_and_come_back(folder, tmp_path, batch):
    model = with_adapters(folder, HEAD)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learning) == 8 and all("text_head" in name and "lora_" in name for name in learning)
    untrained = logits(model, batch)
    assert torch.equal(untrained, logits(AutoModel.from_pretrained(folder), batch))
    frozen = {name: tensor.clone() for name, tensor in model.named_parameters() if name not in learning}

    optimizer = torch.optim.AdamW(learning.values(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model.train()(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in learning.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.named_parameters() if name in frozen)

    model.save_pretrained(tmp_path / "adapters")
    assert (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size < 30_000
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path / "adapters")
    expected = logits(model, batch)
    assert (expected - untrained).abs().max() > 1e-3
    assert torch.equal(logits(loaded, batch), expected)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, AsymVLMModel)
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_take_part_in_a_head_of_half_precision(folder, batch, dtype):
    model = get_peft_model(AutoModel.from_pretrained(folder).to(dtype), LoraConfig(target_modules=HEAD, r=4))
    before = logits(model, batch)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert (logits(model, batch) - before).abs().max() > 1e-3
    assert logits(model, batch).dtype == torch.float32


def test_the_trainer_trains_saves_and_keeps_the_best_adapters(folder, tmp_path):
    model = with_adapters(folder, HEAD)
    trainer = make_trainer(tmp_path / "out", model, learning_rate=1e-2)
    trainer.train()
    trained = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    evaluation = make_pairs(1, 21, 21)
    (checkpoint, *_) = (tmp_path / "out").glob("checkpoint-*")
    assert not (checkpoint / "model.safetensors").exists()
    batch = evaluation.__getitems__(range(21))
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), trainer.state.best_model_checkpoint)
    loss = loaded.eval()(**batch, return_loss=True).loss.item()
    untrained = AutoModel.from_pretrained(folder)(**batch, return_loss=True).loss.item()
    assert loss == pytest.approx(min(trained), rel=1e-5)
    assert loss < untrained
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("save_backbone", [True, False])
def test_auto_model_finds_the_model_of_the_adapters(tiny_clip, tmp_path, batch, save_backbone):
    model = with_adapters(save_model(tiny_clip, tmp_path, save_backbone), HEAD)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapters")
    loaded = AutoModel.from_pretrained(tmp_path / "adapters")
    assert isinstance(loaded, AsymVLMModel)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize("target_modules", [BACKBONE, "all-linear"])
def test_adapters_in_the_backbone_are_refused_when_training_starts(folder, tmp_path, target_modules):
    message = r"Parameter vlm\..*lora_A.* has requires_grad, but the backbone is frozen"
    model = with_adapters(folder, target_modules)
    with pytest.raises(ValueError, match=message):
        model.train()
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path / "out", model).train()


def test_trained_adapters_of_the_backbone_serve_frozen(folder, tmp_path, batch):
    """An adapter trained elsewhere may stay in the backbone, as long as it does not ask for gradients."""
    adapted = with_adapters(folder, BACKBONE)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapters")
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path / "adapters")
    assert torch.equal(logits(loaded, batch), logits(adapted, batch))
    assert not torch.equal(logits(loaded, batch), logits(AutoModel.from_pretrained(folder), batch))
    loaded.train()


def test_an_unfrozen_backbone_is_refused_too(folder):
    model = AutoModel.from_pretrained(folder)
    model.vlm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"Parameter vlm\..* has requires_grad.* model.vlm.requires_grad_\(False\)"):
        model.train()
    model.vlm.requires_grad_(False)
    assert model.train().text_head.training
