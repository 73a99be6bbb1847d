"""AsymVLMTrainer: the objective it trains, its validation loss, what it keeps and what it never touches."""

import json

import pytest
import torch
from transformers import AutoModel

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.model.objective import unified_loss
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from tests.support.training import EVERY_EPOCH, head_model, learned, make_pairs, make_trainer, objective_on


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
@pytest.mark.parametrize("normalizer", ["exact", "paper"])
def test_compute_loss_is_the_unified_objective(tmp_path, distribution, normalizer):
    model = head_model(distribution=distribution, normalizer=normalizer)
    trainer = make_trainer(tmp_path, model)
    batch = make_pairs(0, 8, 16).__getitems__(range(16))
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    law = {"distribution": distribution, "normalizer": normalizer}
    expected = unified_loss(
        outputs.text_embeds, outputs.image_embeds, model.logit_scale, image_ids=batch["image_ids"], **law
    )
    assert torch.equal(loss, expected)
    assert outputs.logits_per_text is None


def test_training_lowers_the_validation_loss_and_keeps_the_best_head(tmp_path):
    model = head_model()
    evaluation = make_pairs(1, 21, 21)
    before = objective_on(model, evaluation)
    trainer = make_trainer(tmp_path, model, evaluation=evaluation, num_train_epochs=4, learning_rate=3e-3)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4
    assert min(losses) < before
    assert trainer.state.best_metric == min(losses)
    assert objective_on(model, evaluation) == pytest.approx(min(losses), rel=1e-5)


def test_metrics_get_every_pair_and_its_image(tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen["shapes"] = [array.shape for array in prediction.predictions]
        seen["ids"] = prediction.label_ids.tolist()
        return {"number": len(prediction.label_ids)}

    trainer = make_trainer(tmp_path, head_model(), per_device_eval_batch_size=4)
    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    assert seen == {"shapes": [(21, 24), (21, 24)], "ids": list(range(21))}
    assert metrics["eval_number"] == 21 and metrics["eval_loss"] > 0


def test_pairs_that_do_not_fill_a_batch_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="64 training pairs do not fill a batch of 65 .* lower per_device_train_batch"
    ):
        make_trainer(tmp_path, head_model(), per_device_train_batch_size=65).train()


def test_a_checkpoint_of_another_head_is_refused(tmp_path):
    model = head_model()
    make_trainer(tmp_path, model, num_train_epochs=1).train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    deeper = head_model(num_hidden_layers=4)
    with pytest.raises(ValueError, match="not of this model: missing .*hidden_layers.3"):
        make_trainer(tmp_path, deeper).train(resume_from_checkpoint=str(checkpoint))


def test_what_is_saved_by_name_holds_the_backbone(tmp_path, tiny_clip):
    tiny_clip.save_pretrained(tmp_path / "clip")
    model = AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", hidden_size=32)
    make_trainer(tmp_path / "out", model).save_model(str(tmp_path / "final"))
    assert str(tmp_path) not in (tmp_path / "final" / "config.json").read_text()
    assert AutoModel.from_pretrained(tmp_path / "final").vlm is not None


@pytest.mark.parametrize("eval_batch_size", [1, 4, 10, 20, 21, 64])
def test_evaluation_drops_no_pair_whatever_the_batch_size(tmp_path, eval_batch_size):
    model = head_model().eval()
    pairs = make_pairs(2, 21, 21)
    trainer = make_trainer(tmp_path, model, evaluation=pairs, per_device_eval_batch_size=eval_batch_size)
    metrics = trainer.evaluate()
    blocks = torch.arange(21).tensor_split(min(-(-21 // eval_batch_size), 10))
    expected = 0.0
    with torch.no_grad():
        for rows in blocks:
            expected += model(**pairs.__getitems__(rows), return_loss=True).loss.item() * len(rows) / 21
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.args.dataloader_drop_last


def test_pixels_and_tokens_train_the_head_and_leave_the_backbone(tmp_path, tiny_clip, batch):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip, **learned(hidden_size=32))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [{name: tensor[row] for name, tensor in batch.items()} for row in range(4)] * 2
    trainer = AsymVLMTrainer(
        model=model,
        args=AsymVLMTrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            disable_tqdm=True,
            **EVERY_EPOCH,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("vlm."), name
    assert all(not parameter.requires_grad for parameter in trainer.model.vlm.parameters())
    assert not trainer.model.vlm.training


def test_checkpoints_hold_the_head_only_load_alone_and_hold_no_pickled_arguments(tmp_path, tiny_clip):
    tiny_clip.save_pretrained(tmp_path / "clip")
    model = AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", hidden_size=32)
    trainer = make_trainer(tmp_path / "out", model, num_train_epochs=1)
    trainer.train()
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "model.safetensors").stat().st_size < 50_000
    assert not (checkpoint / "training_args.bin").exists()
    arguments = json.loads((checkpoint / "training_args.json").read_text())
    assert arguments["per_device_train_batch_size"] == 16
    loaded = AutoModel.from_pretrained(checkpoint)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > 200_000


def test_resuming_continues_where_training_stopped(tmp_path):
    straight = head_model()
    make_trainer(tmp_path / "straight", straight, num_train_epochs=3, load_best_model_at_end=False).train()
    kwargs = {"num_train_epochs": 3, "load_best_model_at_end": False, "save_total_limit": None}
    make_trainer(tmp_path / "parts", head_model(), **kwargs).train()
    resumed = head_model()
    checkpoint = sorted((tmp_path / "parts").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    make_trainer(tmp_path / "parts", resumed, **kwargs).train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_gradient_accumulation_averages_the_losses_of_its_batches(tmp_path):
    class Recorder(AsymVLMTrainer):
        def compute_loss(self, *arguments, **keywords):
            loss = super().compute_loss(*arguments, **keywords)
            self.recorded.append(loss.item())
            return loss

    trainer = make_trainer(tmp_path, head_model(), gradient_accumulation_steps=2, num_train_epochs=1)
    trainer.__class__ = Recorder
    trainer.recorded = []
    result = trainer.train()
    assert result.training_loss == pytest.approx(sum(trainer.recorded) / len(trainer.recorded), rel=1e-5)


def test_the_temperature_and_the_biases_are_not_decayed(tmp_path):
    model = head_model()
    names = make_trainer(tmp_path, model).get_decay_parameter_names(model)
    assert names and all(name.endswith("weight") for name in names)
    assert "text_head.logit_scale" not in names


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_rounds_the_products_and_nothing_else(tmp_path, dtype):
    model = head_model(hidden_dropout_prob=0.0)
    batch = make_pairs(0, 8, 16).__getitems__(range(16))
    with torch.no_grad():
        exact = model.eval()(text_features=batch["text_features"]).text_embeds
        model.text_head.training_dtype = torch.bfloat16 if dtype == "bf16" else torch.float16
        assert torch.equal(model(text_features=batch["text_features"]).text_embeds, exact)
        rounded = model.train()(text_features=batch["text_features"]).text_embeds
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.02 * exact.abs().max().item())
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.text_head.parameters())


def test_training_in_bfloat16_learns_as_well(tmp_path):
    losses = {}
    for mixed in (False, True):
        model = head_model()
        trainer = make_trainer(tmp_path / str(mixed), model, bf16=mixed, use_cpu=True, num_train_epochs=4)
        trainer.train()
        assert model.text_head.training_dtype == (torch.bfloat16 if mixed else None)
        losses[mixed] = trainer.state.best_metric
    assert losses[True] == pytest.approx(losses[False], rel=0.02) and losses[True] != losses[False]


@pytest.mark.parametrize("arguments", [{"deepspeed": {"zero_optimization": {"stage": 1}}}, {"fsdp": "full_shard"}])
def test_sharded_training_is_refused(tmp_path, arguments, monkeypatch):
    with pytest.raises((ValueError, ImportError), match="must stay off|deepspeed"):
        AsymVLMTrainingArguments(output_dir=str(tmp_path), **arguments)


def test_one_caption_per_image_needs_to_know_the_images(tmp_path):
    trainer = make_trainer(tmp_path, head_model(), train=[{}] * 64, one_caption_per_image=True)
    with pytest.raises(ValueError, match="list has no attribute text_image_index"):
        trainer.get_train_dataloader()


def test_batches_hold_an_image_once_when_asked(tmp_path):
    trainer = make_trainer(tmp_path, head_model(), one_caption_per_image=True)
    batches = [batch["image_ids"] for batch in trainer.get_train_dataloader()]
    assert len(batches) == 4 and all(len(ids.unique()) == 16 for ids in batches)
    plain = make_trainer(tmp_path, head_model())
    assert any(len(batch["image_ids"].unique()) < 16 for batch in plain.get_train_dataloader())
