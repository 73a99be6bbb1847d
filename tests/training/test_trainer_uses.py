"""The Trainer as users drive it: prediction, searches, interruption, optimisers of their own, precision."""

import os
import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR
from torch.utils.data import IterableDataset
from transformers import TrainerCallback
from transformers.trainer_utils import HPSearchBackend

from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.recall import RecallsAtOne
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from tests.support.training import EVERY_EPOCH, head_model, make_pairs, make_trainer


def trainer_of(folder, *, pairs=None, evaluation=None, arguments=None, **keywords) -> AsymVLMTrainer:
    settings = {**EVERY_EPOCH, "num_train_epochs": 2, "per_device_train_batch_size": 16, "disable_tqdm": True}
    return AsymVLMTrainer(
        args=AsymVLMTrainingArguments(output_dir=str(folder), use_cpu=True, **settings, **(arguments or {})),
        train_dataset=make_pairs(0, 32, 64) if pairs is None else pairs,
        eval_dataset=make_pairs(1, 21, 21) if evaluation is None else evaluation,
        data_collator=FeaturePairs.collate,
        **keywords,
    )


@pytest.mark.parametrize(("num_pairs", "batch"), [(10, 4), (3, 4), (8, 4), (2, 4096)])
def test_prediction_keeps_every_pair(tmp_path, num_pairs, batch):
    pairs = make_pairs(2, num_pairs, num_pairs)
    trainer = make_trainer(tmp_path, head_model(), per_device_eval_batch_size=batch)
    assert trainer.args.dataloader_drop_last
    output = trainer.predict(pairs)
    expected = trainer.model.eval()(**pairs.__getitems__(range(num_pairs)))
    for found, vectors in zip(output.predictions, (expected.text_embeds, expected.image_embeds), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), vectors.detach())
    assert output.metrics["test_loss"] == pytest.approx(trainer.evaluate(pairs, metric_key_prefix="test")["test_loss"])
    assert trainer.args.dataloader_drop_last


@pytest.fixture
def optuna(monkeypatch) -> None:
    """What a trial needs of Optuna, which is not among the packages of the tests."""
    module = ModuleType("optuna")
    module.__spec__ = ModuleSpec("optuna", None)
    module.TrialPruned, module.Trial = RuntimeError, SimpleNamespace
    module.trial = SimpleNamespace(BaseTrial=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "optuna", module)


def search(trainer: AsymVLMTrainer, learning_rates: list[float]) -> list[float]:
    """Trials as `hyperparameter_search` runs them, one after another; the objectives."""
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    trainer.hp_space = lambda trial: {"learning_rate": learning_rates[trial.number]}
    trainer.compute_objective = lambda metrics: metrics["eval_loss"]
    found = []
    for number in range(len(learning_rates)):
        trainer.objective = None
        trial = SimpleNamespace(number=number, params={}, report=lambda *_: None, should_prune=lambda: False)
        trainer.train(trial=trial)
        found.append(trainer.objective)
    return found


def test_trials_of_a_search_have_folders_of_their_own(tmp_path, optuna):
    trainer = trainer_of(tmp_path, model_init=lambda: head_model(), arguments={"bf16": True})
    search(trainer, [1e-2, 1e-6])
    best = {}
    for number in (0, 1):
        (checkpoint, *_) = sorted((tmp_path / f"run-{number}").glob("checkpoint-*"))
        best[number] = head_model()
        best[number].load_state_dict(load_file(checkpoint / "model.safetensors"))
    assert not list(tmp_path.glob("checkpoint-*"))
    pairs = make_pairs(1, 21, 21).__getitems__(range(21))
    losses = {number: model.eval()(**pairs, return_loss=True).loss.item() for number, model in best.items()}
    assert losses[0] < losses[1]
    assert trainer.model.text_head.training_dtype == torch.bfloat16  # of the model that the trial made


class Interrupt(TrainerCallback):
    def __init__(self, number: int):
        self.number = number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_search_after_saving(tmp_path, optuna, number):
    trainer = trainer_of(tmp_path, model_init=lambda: head_model())
    trainer.add_callback(Interrupt(number))
    with pytest.raises(KeyboardInterrupt):
        search(trainer, [1e-2, 1e-3, 1e-4])
    assert (tmp_path / "run-0" / "checkpoint-3" / "model.safetensors").is_file()
    assert not (tmp_path / "run-1").exists()


class Halved:
    """A schedule of the user's own that is an object with numbers, which `LambdaLR` saves."""

    def __init__(self):
        self.factor = 0.5

    def __call__(self, step: int) -> float:
        return self.factor**step


def own_optimizer(model, kind: str):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if kind == "tensor rate":
        optimizer = torch.optim.AdamW(parameters, lr=torch.tensor(1e-2), foreach=False)
        return optimizer, LambdaLR(optimizer, lambda step: 0.9**step)
    optimizer = torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)
    return optimizer, LambdaLR(optimizer, Halved())


@pytest.mark.parametrize("kind", ["tensor rate", "object"])
def test_tensors_and_objects_of_an_optimiser_are_saved_and_come_back(tmp_path, kind):
    models = []
    for name in ("straight", "parts", "parts"):
        model = head_model()
        arguments = {"load_best_model_at_end": False, "save_total_limit": None}
        settings = {**EVERY_EPOCH, **arguments, "num_train_epochs": 2, "per_device_train_batch_size": 16}
        trainer = AsymVLMTrainer(
            model=model,
            args=AsymVLMTrainingArguments(output_dir=str(tmp_path / name), disable_tqdm=True, **settings),
            train_dataset=make_pairs(0, 32, 64),
            eval_dataset=make_pairs(1, 21, 21),
            data_collator=FeaturePairs.collate,
            optimizers=own_optimizer(model, kind),
        )
        again = len(models) == 2
        trainer.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-4") if again else None)
        models.append(model)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(models[2].state_dict()[name], tensor), name


def test_a_state_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    model = head_model()
    optimizer = torch.optim.SGD([model.logit_scale], lr=0.1)
    trainer = trainer_of(tmp_path, model=model, optimizers=(optimizer, MultiStepLR(optimizer, [1, 2])))
    with pytest.raises(ValueError, match="schedule .*milestones is a Counter, which cannot be saved without pickle"):
        trainer.train()
    assert trainer.state.global_step == 0 and not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit"])
def test_optimisers_with_tensors_of_their_own_kind_are_refused_before_the_first_step(tmp_path, name):
    low_bit = pytest.importorskip("torchao.optim")
    model = head_model()
    optimizer = getattr(low_bit, name)([model.text_head.output_layer.weight])
    trainer = trainer_of(tmp_path, model=model, optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)))
    with pytest.raises(ValueError, match=f"The state of {name} of torchao is in tensors of its own kind"):
        trainer.train()


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            {"evaluation": {"a": make_pairs(0, 8, 8), "b": make_pairs(1, 8, 8)}},
            "eval_dataset must be one set.* of a, b",
        ),
        ({"pairs": Stream()}, "train_dataset must have a length and items by number, which Stream lacks"),
        ({"evaluation": Stream()}, "eval_dataset must have a length"),
    ],
)
def test_sets_without_an_order_of_their_own_are_refused(tmp_path, datasets, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model=head_model(), **datasets)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", None)])
def test_the_precision_of_accelerate_launch_is_that_of_the_products(tmp_path, monkeypatch, precision, dtype):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    trainer = make_trainer(tmp_path, head_model(), use_cpu=True)
    assert trainer.accelerator.mixed_precision == precision
    assert trainer.model.text_head.training_dtype == dtype


def test_recalls_are_counted_among_the_images_of_a_block():
    recalls = RecallsAtOne()
    assert recalls.compute() == {}
    recalls.add(torch.tensor([[2.0, 1, 0], [3, 1, 0], [0, 0, 1]]), None)
    assert recalls.compute() == {
        "text_to_image_recall_at_1": pytest.approx(2 / 3),
        "image_to_text_recall_at_1": pytest.approx(1 / 3),
    }
    recalls = RecallsAtOne()
    recalls.add(torch.tensor([[2.0, 1, 0], [3, 1, 0], [0, 0, 1]]), torch.tensor([7, 7, 9]))
    assert recalls.compute() == {"text_to_image_recall_at_1": 1.0, "image_to_text_recall_at_1": 1.0}
