"""Which head is kept and at which temperature, with the defaults: never worse on validation than the untrained one."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.objective import unified_loss
from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.trainer import AsymVLMTrainer
from tests.support.training import make_pairs


def default_head(**arguments) -> AsymVLMModel:
    torch.manual_seed(5)
    return AsymVLMModel(AsymVLMConfig(projection_dim=24, **{"hidden_size": 32, **arguments}))


def default_trainer(folder, model, train, evaluation, **arguments) -> AsymVLMTrainer:
    """With the defaults of everything that is not given."""
    return AsymVLMTrainer(
        model=model,
        args=AsymVLMTrainingArguments(output_dir=str(folder), disable_tqdm=True, report_to="none", **arguments),
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=FeaturePairs.collate,
    )


def crooked_pairs(seed: int, num_pairs: int, noise: float = 1.0) -> FeaturePairs:
    """Texts that are those of their image but for a fixed disturbance, which can be learned away."""
    pairs = make_pairs(seed, num_pairs, num_pairs, noise=noise).split
    disturbance = torch.randn(24, 24, generator=torch.Generator().manual_seed(9)) / 4
    return FeaturePairs(replace(pairs, text_features=pairs.text_features + pairs.text_features @ disturbance))


def unrelated_pairs(seed: int, num_pairs: int) -> FeaturePairs:
    """Texts that tell next to nothing of their image, so that what is learned of them is chance."""
    return make_pairs(seed, num_pairs, num_pairs, noise=6.0)


@torch.no_grad()
def outputs_on(model: AsymVLMModel, pairs: FeaturePairs) -> dict[str, torch.Tensor]:
    batch = pairs.__getitems__(range(len(pairs)))
    out = model.eval()(**batch, return_logits=False)
    return {"text_embeds": out.text_embeds, "image_embeds": out.image_embeds, "image_ids": batch["image_ids"]}


def fitted_loss(outputs, distribution="power_spherical") -> tuple[float, float]:
    """The least objective over tau, found by scipy, and its tau."""

    def loss(u: float) -> float:
        return unified_loss(**outputs, logit_scale=math.exp(u), distribution=distribution).item()

    found = minimize_scalar(loss, bounds=(-8, 5), method="bounded", options={"xatol": 1e-7})
    return found.fun, math.exp(found.x)


def logged(trainer, name: str) -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def test_the_head_is_judged_before_the_first_step_and_about_sixteen_times(tmp_path):
    trainer = default_trainer(tmp_path, default_head(), crooked_pairs(0, 300), crooked_pairs(1, 100))
    assert (trainer.args.per_device_train_batch_size, trainer.args.max_steps) == (300, 60)
    trainer.train()
    assert list(logged(trainer, "eval_fitted_loss"))[:4] == [0, 4, 8, 12]
    assert not trainer.warnings


@pytest.mark.parametrize("distribution", ["power_spherical", "vmf", "deterministic"])
def test_the_kept_head_has_the_temperature_of_least_validation_loss(tmp_path, distribution):
    model, evaluation = default_head(distribution=distribution), crooked_pairs(1, 100)
    before = fitted_loss(outputs_on(model, evaluation), distribution)[0]
    trainer = default_trainer(tmp_path, model, crooked_pairs(0, 300), evaluation)
    trainer.train()
    loss, tau = fitted_loss(outputs_on(model, evaluation), distribution)
    assert model.logit_scale.item() == pytest.approx(tau, rel=1e-3)
    assert trainer.state.best_metric == pytest.approx(loss, rel=1e-4)
    assert trainer.state.best_metric == min(logged(trainer, "eval_fitted_loss").values())
    assert logged(trainer, "eval_fitted_loss")[0] == pytest.approx(before, rel=1e-4)
    assert loss < before and trainer.state.best_global_step > 0
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_pairs", [40, 120])
def test_the_kept_head_is_never_worse_on_validation_than_the_untrained_one(tmp_path, seed, num_pairs):
    train, evaluation = unrelated_pairs(seed, num_pairs), unrelated_pairs(100 + seed, 60)
    model = default_head()
    untrained = fitted_loss(outputs_on(model, evaluation))[0]
    default_trainer(tmp_path, model, train, evaluation, learning_rate=1e-2).train()
    outputs = outputs_on(model, evaluation)
    kept = unified_loss(**outputs, logit_scale=model.logit_scale, distribution="power_spherical").item()
    assert kept <= untrained * (1 + 1e-5)


def test_where_nothing_is_learned_the_backbone_itself_is_kept_and_it_says_so(tmp_path):
    shuffled = unrelated_pairs(0, 120)
    other = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    train = FeaturePairs(replace(shuffled.split, text_features=shuffled.split.text_features[other]))
    model, evaluation = default_head(), make_pairs(7, 100, 100, noise=2.0)
    trainer = default_trainer(tmp_path, model, train, evaluation, learning_rate=3e-2)
    trainer.train()
    assert trainer.state.best_global_step == 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-0"]
    out, features = outputs_on(model, evaluation), evaluation.split.text_features
    direction = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(out["text_embeds"], 150 * direction, rtol=1e-6, atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(fitted_loss(out)[1], rel=1e-3)
    assert any("which is kept: the backbone's own direction" in sentence for sentence in trainer.warnings)


def test_a_perfect_validation_split_ends_in_a_note(tmp_path):
    model = default_head()
    trainer = default_trainer(tmp_path, model, make_pairs(0, 120, 120), make_pairs(1, 60, 60, noise=0.01))
    trainer.train()
    assert any("60 validation pairs are told apart" in sentence for sentence in trainer.warnings)
    assert trainer.state.best_metric == pytest.approx(1 / 61, rel=1e-2)
    assert 0 < model.logit_scale.item() < math.inf


def test_a_head_that_is_compared_at_its_own_temperature_keeps_it(tmp_path):
    model, evaluation = default_head(), crooked_pairs(1, 100)
    trainer = default_trainer(tmp_path, model, crooked_pairs(0, 300), evaluation, metric_for_best_model="eval_loss")
    trainer.train()
    outputs = outputs_on(model, evaluation)
    own = unified_loss(**outputs, logit_scale=model.logit_scale, distribution="power_spherical").item()
    assert own == pytest.approx(min(logged(trainer, "eval_loss").values()), rel=1e-5)


def test_patience_counts_evaluations_without_gain_after_warm_up(tmp_path):
    def steps(patience, warmup):
        arguments = {"early_stopping_patience": patience, "warmup_steps": warmup, "learning_rate": 3e-2}
        trainer = default_trainer(
            tmp_path / f"{patience}-{warmup}",
            default_head(),
            unrelated_pairs(0, 120),
            crooked_pairs(7, 100),
            eval_steps=4,
            **arguments,
        )
        trainer.train()
        best = trainer.state.best_global_step
        return trainer.state.global_step, best

    assert steps(None, 0) == (60, 0)
    assert steps(2, 0) == (8, 0)
    assert steps(6, 0) == (24, 0)
    assert steps(2, 20) == (28, 0)


@pytest.mark.parametrize("step", [0, 8, 20])
def test_a_default_run_resumed_anywhere_ends_bit_equal(tmp_path, step):
    def run(folder, resume=None):
        model = default_head()
        trainer = default_trainer(folder, model, crooked_pairs(0, 120), crooked_pairs(1, 60), save_total_limit=None)
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict(), trainer.state

    weights, state = run(tmp_path / "straight")
    for name in {step, state.best_global_step if state.best_global_step <= step else step}:
        shutil.copytree(tmp_path / "straight" / f"checkpoint-{name}", tmp_path / "resumed" / f"checkpoint-{name}")
    resumed, again = run(tmp_path / "resumed", str(tmp_path / "resumed" / f"checkpoint-{step}"))
    assert (again.global_step, again.best_global_step) == (state.global_step, state.best_global_step)
    for name, tensor in weights.items():
        assert torch.equal(resumed[name], tensor), name


DISASTERS = {
    "learning rate 1e3": ({}, {"learning_rate": 1e3}, 1.0),
    "learning rate 1e8": ({}, {"learning_rate": 1e8}, 1.0),
    "learning rate 1e3, learned": ({"mean_direction": "learned"}, {"learning_rate": 1e3}, 1.0),
    "learning rate 1e30, no best": ({}, {"learning_rate": 1e30, "load_best_model_at_end": False}, 1.0),
    "weight decay 1e6": ({}, {"weight_decay": 1e6}, 1.0),
    "weight decay 1e30": ({}, {"weight_decay": 1e30, "load_best_model_at_end": False}, 1.0),
    "SGD without clipping": ({}, {"optim": "sgd", "learning_rate": 1e6, "max_grad_norm": 0.0}, 1.0),
    "tau 1e30": ({"logit_scale_init": 1e30}, {}, 1.0),
    "kappa 1e30": ({"initial_concentration": 1e30}, {}, 1.0),
    "kappa 1e-30": ({"initial_concentration": 1e-30, "distribution": "vmf"}, {}, 1.0),
    "features of length 1e25": ({}, {}, 1e25),
    "raw features of length 1e30": ({"mean_direction": "learned", "normalize_text_features": False}, {}, 1e30),
    "features of length 1e-30": ({}, {}, 1e-30),
}


@pytest.mark.parametrize("name", DISASTERS)
def test_no_weight_that_is_not_finite_is_ever_saved(tmp_path, name):
    head, training, scale = DISASTERS[name]
    pairs = []
    for seed, num_pairs in enumerate((120, 60)):
        split = crooked_pairs(seed, num_pairs).split
        pairs.append(FeaturePairs(replace(split, text_features=split.text_features * scale)))
    trainer = default_trainer(tmp_path, default_head(**head), *pairs, **training)
    try:
        trainer.train()
        trainer.save_model(str(tmp_path / "kept"))
    except ValueError as error:
        assert "diverged" in str(error) and "at step" in str(error) and "Lower learning_rate" in str(error)
    for file in tmp_path.rglob("model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_at_once(tmp_path, value):
    class Broken(AsymVLMTrainer):
        def compute_loss(self, *arguments, **keywords):
            loss = super().compute_loss(*arguments, **keywords)
            return loss * value if self.state.global_step == 5 else loss

    trainer = default_trainer(tmp_path, default_head(), crooked_pairs(0, 120), crooked_pairs(1, 60))
    trainer.__class__ = Broken
    with pytest.raises(
        ValueError, match=f"the loss is {value} at step 6, at a learning rate of .*Lower learning_rate"
    ):
        trainer.train()
    assert trainer.state.global_step == 5


def test_no_evaluation_no_selection(tmp_path):
    trainer = AsymVLMTrainer(
        model=default_head(),
        args=AsymVLMTrainingArguments(
            output_dir=str(tmp_path),
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            max_steps=3,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=crooked_pairs(0, 120),
        data_collator=FeaturePairs.collate,
    )
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.state.best_metric is None


# PEFT asks transformers for a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_compared_at_fitted_temperatures_and_a_frozen_one_stays(tmp_path):
    untrained, evaluation = default_head(), crooked_pairs(1, 100)
    adapters = LoraConfig(target_modules=r"text_head\.(hidden_layers\.\d+|output_layer)", r=4)
    model = get_peft_model(untrained, adapters)
    trainer = default_trainer(tmp_path, model, crooked_pairs(0, 300), evaluation, learning_rate=1e-2)
    trainer.train()
    assert model.logit_scale.item() == pytest.approx(0.15)
    fitted = logged(trainer, "eval_fitted_logit_scale")[trainer.state.best_global_step]
    assert any(f"frozen at 0.15; {fitted:.4g} fits best" in sentence for sentence in trainer.warnings)
    losses = logged(trainer, "eval_fitted_loss")
    assert 0 in losses and trainer.state.best_metric == min(losses.values()) < losses[0]
    assert trainer.evaluate()["eval_fitted_loss"] == pytest.approx(min(losses.values()), rel=1e-4)
