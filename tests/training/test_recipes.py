"""The recipes as one table, and a head of each."""

import math

import pytest

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.recipes import RECIPES
from modeling_asymvlm.training.trainer import AsymVLMTrainer
from tests.support.training import make_pairs


HEADS = {
    "default": ("refined", True, 0.3, 0.5, 512, 1, 150.0, 0.15, "exact"),
    "learned": ("learned", False, 0.0, 0.3, 1024, 1, 10.0, 1.0, "exact"),
    "paper": ("learned", False, 0.0, 0.0, 1024, 3, 10.0, 1.0, "paper"),
}
TRAINING = {
    "default": ("adamw_torch", 2e-3, 1.0, 0.1, "cosine", None, 1024, False, None),
    "learned": ("adamw_torch", 3e-3, 1.0, 0.1, "cosine", 10.0, 1024, False, None),
    "paper": ("sgd", 1e-2, 5e-4, 0.0, "cosine_with_min_lr", 200.0, 2048, True, None),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_what_the_table_says(name, tmp_path):
    config = AsymVLMConfig(projection_dim=24, **RECIPES[name].head)
    assert HEADS[name] == (
        config.mean_direction,
        config.normalize_text_features,
        config.input_dropout_prob,
        config.hidden_dropout_prob,
        config.hidden_size,
        config.num_hidden_layers,
        config.initial_concentration,
        config.logit_scale_init,
        config.normalizer,
    )
    assert config.distribution == "power_spherical"
    arguments = AsymVLMTrainingArguments(output_dir=str(tmp_path), **RECIPES[name].training)
    assert TRAINING[name] == (
        getattr(arguments.optim, "value", arguments.optim).removesuffix("_fused"),
        arguments.learning_rate,
        arguments.weight_decay,
        arguments.warmup_steps,
        arguments.lr_scheduler_type,
        arguments.num_train_epochs,
        arguments.global_train_batch_size,
        arguments.same_image_negatives,
        arguments.early_stopping_patience,
    )
    assert arguments.metric_for_best_model == "eval_fitted_loss" and arguments.eval_on_start


def test_the_recipe_of_the_paper_trains_with_its_optimiser(tmp_path):
    settings = {**RECIPES["paper"].training, "num_train_epochs": 20.0}
    trainer = AsymVLMTrainer(
        model=AsymVLMModel(AsymVLMConfig(projection_dim=24, **{**RECIPES["paper"].head, "hidden_size": 32})),
        args=AsymVLMTrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, report_to="none", **settings),
        train_dataset=make_pairs(0, 32, 64),
        eval_dataset=make_pairs(1, 21, 21),
        data_collator=FeaturePairs.collate,
    )
    trainer.train()
    group = trainer.optimizer.param_groups[0]
    assert type(trainer.optimizer.optimizer).__name__ == "SGD"
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    assert trainer.args.per_device_train_batch_size == 64 and trainer.state.global_step == 20
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-6)


def test_other_captions_of_an_image_are_negatives_only_where_asked(tmp_path):
    batch = make_pairs(0, 8, 16).__getitems__(range(16))
    losses = []
    for negatives in (False, True):
        trainer = AsymVLMTrainer(
            model=AsymVLMModel(AsymVLMConfig(projection_dim=24)).eval(),
            args=AsymVLMTrainingArguments(output_dir=str(tmp_path), same_image_negatives=negatives),
            train_dataset=make_pairs(0, 8, 16),
            eval_dataset=make_pairs(1, 8, 16),
            data_collator=FeaturePairs.collate,
        )
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[1] > losses[0] and math.isfinite(losses[1])
