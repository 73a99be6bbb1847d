"""Several processes train as one does with the same pairs in a batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from tests.support.training import head_model, make_pairs, make_trainer


STEPS = 100
GLOBAL_BATCH = 32


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs, **_):
        if "loss" in logs:
            self.values.append(float(logs["loss"]))


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


def worker(rank: int, world_size: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    results = train(folder, world_size)
    if rank == 0:
        save_file(results, f"{folder}/results.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_give_the_trajectory_of_one(tmp_path, world_size):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(worker, args=(world_size, str(tmp_path), port), nprocs=world_size)
    expected, actual = train(str(tmp_path / "one"), 1), load_file(tmp_path / "results.safetensors")
    assert len(expected["losses"]) == STEPS and expected["losses"][-10:].mean() < expected["losses"][:10].mean() - 0.1
    # Only rank 0 logs, and what it logs is the mean over all processes.
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)
