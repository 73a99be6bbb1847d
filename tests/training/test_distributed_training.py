"""Several processes train as one does with the same pairs in a batch."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.trainer import AsymVLMTrainer
from tests.support.training import head_model, make_pairs, make_trainer


STEPS = 100
GLOBAL_BATCH = 32


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs, **_):
        if "loss" in logs:
            self.values.append(float(logs["loss"]))


def train_with_defaults(folder: str, world_size: int) -> dict[str, torch.Tensor]:
    """A run of the defaults, in which the untrained head is a candidate and the kept one gets a fitted temperature."""
    torch.manual_seed(5)
    model = AsymVLMModel(
        AsymVLMConfig(projection_dim=24, hidden_size=32, hidden_dropout_prob=0.0, input_dropout_prob=0.0)
    )
    trainer = AsymVLMTrainer(
        model=model,
        args=AsymVLMTrainingArguments(
            output_dir=f"{folder}/run", disable_tqdm=True, report_to="none", use_cpu=True, save_total_limit=None
        ),
        train_dataset=make_pairs(0, 120, 120),
        eval_dataset=make_pairs(1, 60, 60, noise=2.0),
        data_collator=FeaturePairs.collate,
    )
    trainer.train()
    assert trainer.args.per_device_train_batch_size == 120 // world_size
    entries = [entry for entry in trainer.state.log_history if "eval_fitted_loss" in entry]
    kept = [trainer.state.best_global_step, len(entries), len(list(Path(folder, "run").glob("checkpoint-*")))]
    return {
        "fitted": torch.tensor([[entry["eval_fitted_loss"], entry["eval_fitted_logit_scale"]] for entry in entries]),
        "kept": torch.tensor(kept),
        **{name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
    }


def train(folder: str, world_size: int) -> dict[str, torch.Tensor]:
    model = head_model(hidden_dropout_prob=0.0)
    trainer = make_trainer(
        f"{folder}/run",
        model,
        train=make_pairs(0, 200, 640),
        per_device_train_batch_size=GLOBAL_BATCH // world_size,
        one_caption_per_image=True,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
    )
    losses = Losses()
    trainer.add_callback(losses)
    trainer.train()
    (evaluation,) = {entry["eval_loss"] for entry in trainer.state.log_history[-2:] if "eval_loss" in entry}
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return {"losses": torch.tensor(losses.values), "evaluation": torch.tensor([evaluation]), **weights}


def worker(rank: int, run: Callable, world_size: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    results = run(folder, world_size)
    if rank == 0:
        save_file(results, f"{folder}/results.safetensors")
    dist.destroy_process_group()


def in_processes(run: Callable, world_size: int, folder: Path) -> dict[str, torch.Tensor]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(worker, args=(run, world_size, str(folder), port), nprocs=world_size)
    return load_file(folder / "results.safetensors")


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_give_the_trajectory_of_one(tmp_path, world_size):
    actual, expected = in_processes(train, world_size, tmp_path), train(str(tmp_path / "one"), 1)
    assert len(expected["losses"]) == STEPS and expected["losses"][-10:].mean() < expected["losses"][:10].mean() - 0.1
    # Only rank 0 logs, and what it logs is the mean over all processes.
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


def test_two_processes_keep_the_head_that_one_keeps(tmp_path):
    actual = in_processes(train_with_defaults, 2, tmp_path)
    expected = train_with_defaults(str(tmp_path / "one"), 1)
    assert actual["kept"].tolist() == expected["kept"].tolist()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text)
