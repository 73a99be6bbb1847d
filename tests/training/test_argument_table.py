"""Every argument of `TrainingArguments`: in one of the two tables, refused in one sentence, or trained with."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from modeling_asymvlm.commands.parser import flags_in_file
from modeling_asymvlm.commands.train import command_parser
from modeling_asymvlm.training.argument_table import OPTIMIZERS, REFUSED, SUPPORTED
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from tests.support.training import EVERY_EPOCH, head_model, make_pairs, make_trainer


FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
# A value of each refused argument that asks for something.
ASKED = {
    "optim_target_modules": ["output_layer"],
    "warmup_ratio": 0.1,
    "label_smoothing_factor": 0.1,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "neftune_noise_alpha": 5.0,
    "auto_find_batch_size": True,
    "include_num_input_tokens_seen": "all",
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "enable_jit_checkpoint": True,
    "push_to_hub": True,
    "hub_strategy": "end",
    "hub_always_push": True,
    "accelerator_config": {"split_batches": True},
    "parallelism_config": {"tp_size": 2},
    "dataloader_in_order": False,
    "remove_unused_columns": True,
    "label_names": ["labels"],
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "words",
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 2},
    "deepspeed": "zero2.json",
    "debug": "underflow_overflow",
    "do_predict": True,
}
# Option sets that users switch, each of which trains, evaluates, saves and is judged.
TRAINED = [
    *({"optim": name} for name in OPTIMIZERS),
    *({"lr_scheduler_type": name.value} for name in SchedulerType if name.value in ("linear", "cosine", "constant")),
    {"lr_scheduler_type": "constant_with_warmup"},
    {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    {"lr_scheduler_type": "inverse_sqrt"},
    {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
    {"lr_scheduler_type": "reduce_lr_on_plateau"},
    {"warmup_steps": 3},
    {"warmup_steps": 0},
    {"weight_decay": 0.0},
    {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    {"max_grad_norm": 0.0},
    {"gradient_accumulation_steps": 3},
    {"average_tokens_across_devices": False},
    {"bf16": True, "use_cpu": True},
    {"gradient_checkpointing": True},
    {"torch_empty_cache_steps": 1},
    {"logging_strategy": "epoch"},
    {"logging_strategy": "no"},
    {"logging_steps": 1, "logging_first_step": True},
    {"logging_nan_inf_filter": False},
    {"log_level": "error"},
    {"disable_tqdm": False},
    {"report_to": ["none"]},
    {"report_to": []},
    {"run_name": "a"},
    {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
    {"eval_strategy": "steps", "eval_steps": 0.5, "save_strategy": "steps", "save_steps": 0.5},
    {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False},
    {"save_strategy": "best", "eval_strategy": "epoch"},
    {"eval_delay": 1},
    {"eval_on_start": True},
    {"eval_accumulation_steps": 1},
    {"per_device_eval_batch_size": 4},
    {"save_only_model": True},
    {"save_on_each_node": True},
    {"save_total_limit": None},
    {"save_total_limit": 2},
    {"load_best_model_at_end": False},
    {"metric_for_best_model": "eval_loss"},
    {"metric_for_best_model": "loss"},
    {"metric_for_best_model": "fitted_loss"},
    {"metric_for_best_model": "eval_text_to_image_recall_at_1"},
    {"metric_for_best_model": "image_to_text_recall_at_1", "greater_is_better": True},
    {"early_stopping_patience": 1},
    {"ignore_data_skip": True},
    {"restore_callback_states_from_checkpoint": True},
    {"seed": 3},
    {"data_seed": 3},
    {"dataloader_drop_last": False},
    {"dataloader_num_workers": 1},
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2},
    {"dataloader_pin_memory": False},
    {"ddp_find_unused_parameters": True, "ddp_timeout": 60},
    {"skip_memory_metrics": False},
    {"max_steps": 3},
    {"num_train_epochs": 0.5},
    {"tile_size": 5},
    {"one_caption_per_image": True},
    {"same_image_negatives": True},
    {"hub_model_id": "me/head", "hub_private_repo": True},
    {"label_smoothing_factor": 0},
]


def test_every_argument_stands_in_one_table():
    unknown = sorted(FIELDS.keys() - SUPPORTED - REFUSED.keys())
    assert not unknown, f"new in transformers: support them or refuse them in argument_table.py: {unknown}"
    assert not SUPPORTED & REFUSED.keys()
    assert REFUSED.keys() == ASKED.keys()


@pytest.mark.parametrize("name", [name for name in ASKED if name in FIELDS])
def test_a_refused_argument_is_named_in_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}=.* is refused: {name} must stay off, since .+\.$") as error:
        AsymVLMTrainingArguments(output_dir=str(tmp_path), **{name: ASKED[name]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in REFUSED if name in FIELDS])
def test_what_asks_for_nothing_is_no_reason_to_refuse(tmp_path, name):
    for value in REFUSED[name].allowed:
        AsymVLMTrainingArguments(output_dir=str(tmp_path), **{name: value})


@pytest.mark.parametrize("name", [each.value for each in OptimizerNames if each.value not in OPTIMIZERS])
def test_other_optimisers_are_refused_before_training(tmp_path, name):
    with pytest.raises(ValueError, match=f"optim={name} is not supported.*Choose one of adamw_torch, "):
        AsymVLMTrainingArguments(output_dir=str(tmp_path), optim=name)


@pytest.mark.parametrize("report_to", ["not_a_tracker", ["none_such", "all"], "neptune"])
def test_a_tracker_that_is_not_installed_is_refused_before_training(tmp_path, report_to):
    with pytest.raises(ValueError, match="report_to=.* is not installed.*choose none"):
        AsymVLMTrainingArguments(output_dir=str(tmp_path), report_to=report_to)


def test_lists_of_a_file_are_read_as_lists(tmp_path, monkeypatch):
    known = lambda: ["tensorboard", "trackio"]  # noqa: E731
    monkeypatch.setattr("modeling_asymvlm.training.argument_table.get_available_reporting_integrations", known)
    (tmp_path / "a.yaml").write_text("report_to: [tensorboard, trackio]\noutput_dir: out\n")
    *_, training = command_parser().parse_args_into_dataclasses(flags_in_file(tmp_path / "a.yaml"))
    assert training.report_to == ["tensorboard", "trackio"]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("arguments", TRAINED, ids=lambda arguments: " ".join(map(str, arguments.items())))
def test_supported_arguments_train_evaluate_and_save(tmp_path, arguments):
    model = head_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(tmp_path, model, **{"num_train_epochs": 2, "use_cpu": True, **arguments})
    trainer.train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert trainer.evaluate()["eval_loss"] > 0
    assert len(trainer.predict(trainer.eval_dataset).predictions[0]) == len(trainer.eval_dataset)
    if trainer.args.save_strategy != "no":
        assert list(tmp_path.glob("checkpoint-*/model.safetensors"))


@pytest.mark.parametrize("name", ["recall", "eval_accuracy", "fitted_logit_scale"])
def test_a_metric_that_no_evaluation_gives_is_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=f"metric_for_best_model={name} is no metric .*eval_text_to_image_recall_at_1"
    ):
        make_trainer(tmp_path, head_model(), metric_for_best_model=name)


def test_a_metric_of_the_user_chooses_the_head(tmp_path):
    values = iter([0.3, 0.7, 0.5])
    arguments = {**EVERY_EPOCH, "metric_for_best_model": "mine", "num_train_epochs": 3, "disable_tqdm": True}
    trainer = AsymVLMTrainer(
        model=head_model(),
        args=AsymVLMTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=16, **arguments),
        train_dataset=make_pairs(0, 32, 64),
        eval_dataset=make_pairs(1, 21, 21),
        data_collator=FeaturePairs.collate,
        compute_metrics=lambda prediction: {"mine": next(values)},
    )
    trainer.train()
    assert trainer.state.best_metric == 0.7 and trainer.state.best_global_step == 8
