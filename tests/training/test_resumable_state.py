"""Checkpoints on the way: whole or absent, without pickle, resumed bit by bit, and left behind by Ctrl-C."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from modeling_asymvlm.training.resumable_state import (
    load_random_state,
    load_training_state,
    save_random_state,
    save_training_state,
)
from modeling_asymvlm.training.run_record import read_run
from modeling_asymvlm.training.trainer import AsymVLMTrainer
from modeling_asymvlm.utils.json_files import write_record
from tests.support.training import head_model, make_pairs, make_trainer


# 64 pairs in batches of 16: four steps an epoch, so that a checkpoint after three steps lies within an epoch.
RUN = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(folder, resume=None, **arguments) -> tuple[dict[str, torch.Tensor], AsymVLMTrainer]:
    model = head_model(hidden_dropout_prob=0.3, num_hidden_layers=1)
    settings = {**RUN, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": False, **arguments}
    trainer = make_trainer(folder, model, train=make_pairs(0, 32, 64), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return weights(model), trainer


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("step", [3, 6, 9, 12])
@pytest.mark.parametrize("one_caption_per_image", [False, True])
def test_a_run_resumed_within_an_epoch_ends_bit_equal(tmp_path, step, one_caption_per_image):
    arguments = {"one_caption_per_image": one_caption_per_image}
    straight, trainer = train(tmp_path / "straight", **arguments)
    assert trainer.state.global_step == 12
    shutil.copytree(tmp_path / "straight" / f"checkpoint-{step}", tmp_path / "resumed" / f"checkpoint-{step}")
    random.seed(1)
    np.random.seed(2)
    resumed, again = train(tmp_path / "resumed", str(tmp_path / "resumed" / f"checkpoint-{step}"), **arguments)
    assert_equal(resumed, straight)
    losses = [[entry.get("eval_loss") for entry in one.state.log_history] for one in (trainer, again)]
    assert losses[0] == losses[1]


def test_a_checkpoint_holds_no_pickle_and_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    train(tmp_path)
    files = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert {"optimizer.safetensors", "training_state.json", "random_state_0.safetensors"} <= files
    assert {os.path.splitext(name)[1] for name in files} == {".json", ".safetensors"}

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modeling_asymvlm.training.checkpoints.save_training_state", fail)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["unfinished-checkpoint-3"]
    monkeypatch.undo()
    train(tmp_path / "full")
    names = {path.name for path in (tmp_path / "full").iterdir()}
    assert names == {"checkpoint-3", "checkpoint-6", "checkpoint-9", "checkpoint-12"}


def test_the_best_checkpoint_and_the_last_are_kept(tmp_path):
    noise = {"evaluation": make_pairs(1, 21, 21, noise=50.0), "learning_rate": 0.3}  # the first is the best of it
    _, trainer = train(tmp_path, load_best_model_at_end=True, save_total_limit=2, **noise)
    best = trainer.state.best_model_checkpoint
    assert {path.name for path in tmp_path.iterdir()} == {os.path.basename(best), "checkpoint-12"}
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


class Interrupt(TrainerCallback):
    def __init__(self, step: int, number: signal.Signals):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_checkpoint_and_goes_on_from_it(tmp_path, number):
    straight, _ = train(tmp_path / "straight")
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    model = head_model(hidden_dropout_prob=0.3, num_hidden_layers=1)
    settings = {**RUN, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": False}
    trainer = make_trainer(tmp_path / "cut", model, train=make_pairs(0, 32, 64), **settings)
    trainer.add_callback(Interrupt(4, number))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.interruption.interrupted and trainer.state.global_step == 5
    assert {which: signal.getsignal(which) for which in before} == before
    resumed, _ = train(tmp_path / "cut", True)
    assert_equal(resumed, straight)


def test_early_stopping_stops_after_evaluations_without_gain(tmp_path):
    _, trainer = train(tmp_path, early_stopping_patience=1, load_best_model_at_end=True, learning_rate=5.0)
    assert trainer.state.global_step < 12


def test_the_random_state_comes_back(tmp_path):
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    random.gauss(0, 1)  # leaves a second number for the next call
    np.random.standard_normal()
    save_random_state(tmp_path / "state.safetensors")
    drawn = [(random.gauss(0, 1), np.random.standard_normal(), torch.rand(()).item()) for _ in range(3)]
    load_random_state(tmp_path / "state.safetensors")
    assert [(random.gauss(0, 1), np.random.standard_normal(), torch.rand(()).item()) for _ in range(3)] == drawn
    with safe_open(tmp_path / "state.safetensors", framework="pt") as opened:
        assert {"python", "numpy", "cpu"} <= set(opened.keys())


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "NAdam"])
def test_the_state_of_an_optimizer_comes_back(tmp_path, name):
    torch.manual_seed(6)
    layer = torch.nn.Linear(3, 2)

    def make() -> tuple:
        optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1, weight_decay=0.01)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    optimizer, scheduler = make()
    for _ in range(3):
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    save_training_state(tmp_path, optimizer, scheduler, None)
    other, other_scheduler = make()
    load_training_state(tmp_path, other, other_scheduler, None)
    assert other_scheduler.get_last_lr() == scheduler.get_last_lr()
    saved, loaded = optimizer.state_dict(), other.state_dict()
    assert saved["param_groups"] == loaded["param_groups"] and saved["state"].keys() == loaded["state"].keys()
    for parameter, entries in saved["state"].items():
        for entry, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(loaded["state"][parameter][entry])), entry


def test_a_folder_without_training_state_is_named(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(FileNotFoundError, match="has no training_state.json: training goes on only from a checkpoint"):
        load_training_state(tmp_path, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), None)
    optimizer.state[layer.weight]["history"] = [torch.zeros(2)]
    with pytest.raises(ValueError, match="The state 'history' of SGD is a list, .* without pickle"):
        save_training_state(tmp_path, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), None)


def checkpoint_of(folder) -> str:
    train(folder)
    return str(folder / "checkpoint-6")


OTHER_RUNS = {
    "learning_rate": ({"learning_rate": 1e-4}, "learning_rate was 0.003, not 0.0001"),
    "seed": ({"seed": 7}, "seed was 42, not 7"),
    "weight_decay": ({"weight_decay": 0.5}, "weight_decay was .*, not 0.5"),
    "batch": ({"per_device_train_batch_size": 8}, "global_train_batch_size was 16, not 8"),
    "clipping": ({"max_grad_norm": 0.5}, "max_grad_norm was 1.0, not 0.5"),
    "negatives": ({"same_image_negatives": True}, "same_image_negatives was False, not True"),
}


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_a_checkpoint_of_another_recipe_is_refused_and_what_differs_is_named(change, tmp_path):
    arguments, message = OTHER_RUNS[change]
    with pytest.raises(ValueError, match=f"checkpoint-6' is of another run: .*{message}.*or start anew"):
        train(tmp_path, checkpoint_of(tmp_path), **arguments)


def test_a_run_may_go_on_for_longer(tmp_path):
    _, trainer = train(tmp_path, checkpoint_of(tmp_path), num_train_epochs=5)
    assert trainer.state.global_step > 6


def test_a_checkpoint_of_other_data_or_another_head_is_refused(tmp_path):
    checkpoint = checkpoint_of(tmp_path)
    settings = {**RUN, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": False}
    head = head_model(hidden_dropout_prob=0.3, num_hidden_layers=1)
    for model, pairs, message in (
        (head, {"train": make_pairs(8, 32, 64)}, "it saw other train pairs"),
        (head, {"train": make_pairs(0, 32, 64), "evaluation": make_pairs(2, 21, 21)}, "it saw other validation pairs"),
        (head_model(hidden_dropout_prob=0.1, num_hidden_layers=1), {}, "hidden_dropout_prob was 0.3, not 0.1"),
    ):
        with pytest.raises(ValueError, match=f"of another run: {message}"):
            make_trainer(tmp_path, model, **{"train": make_pairs(0, 32, 64), **pairs}, **settings).train(checkpoint)


def test_any_changed_or_missing_file_of_a_checkpoint_is_told(tmp_path):
    checkpoint, generator = tmp_path / "checkpoint-6", np.random.default_rng(0)
    checkpoint_of(tmp_path)
    names = sorted(path.name for path in checkpoint.iterdir())
    assert {"model.safetensors", "optimizer.safetensors", "random_state_0.safetensors", "run.json"} <= set(names)
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1
    for name in names:
        content = (checkpoint / name).read_bytes()
        for _ in range(4):
            damaged = bytearray(content)
            damaged[generator.integers(len(content))] ^= 1 << generator.integers(7)
            (checkpoint / name).write_bytes(damaged)
            try:
                read_run(checkpoint)
                assert name == "run.json" and json.loads(damaged) == json.loads(content)  # white space
            except ValueError as error:
                assert str(checkpoint) in str(error) and "Go on from another checkpoint-N folder" in str(error)
        (checkpoint / name).unlink()
        with pytest.raises(FileNotFoundError if name == "run.json" else ValueError, match=name):
            read_run(checkpoint)
        (checkpoint / name).write_bytes(content)
    read_run(checkpoint)


def test_a_resumed_run_knows_what_all_of_it_has_cost(tmp_path):
    checkpoint = checkpoint_of(tmp_path)
    record = json.loads((tmp_path / "checkpoint-6" / "run.json").read_text())
    record["seconds"] = {"features": 50.0, "training": 700.0}
    kept = {name: value for name, value in record.items() if name not in ("format", "checksum")}
    write_record(tmp_path / "checkpoint-6" / "run.json", kept, format=record["format"])
    _, trainer = train(tmp_path, checkpoint)
    assert trainer.seconds["features"] == 50.0 and trainer.seconds["training"] > 700.0
    seconds = json.loads((tmp_path / "checkpoint-12" / "run.json").read_text())["seconds"]
    assert seconds["features"] == 50.0 and 700.0 < seconds["training"] <= trainer.seconds["training"]
