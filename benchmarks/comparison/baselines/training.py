"""The one training loop of the comparison: AdamW, warm-up and cosine schedule, the best epoch by validation loss.

Batches and steps follow the data, as those of the training command do: a batch holds 1,024 pairs, at most all that
there are, and training is at least 60 steps long, since an epoch of a few hundred pairs is one.
"""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup, set_seed

from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.schedule import SMALLEST_NUM_STEPS, resolve_schedule

from .protocol import Method


@dataclass(frozen=True)
class Training:
    """
    How a method is trained.

    Args:
        learning_rate (`float`): peak of the schedule.
        weight_decay (`float`): of the matrices alone, never of biases and scalars.
        num_epochs (`int`): passes over the training captions; as many more as make 60 steps.
        batch_size (`int`, *optional*):
            Pairs, of which the last, smaller batch is dropped; by default 1,024 or all that there are.
        scalar_learning_rate (`float`, *optional*): peak for the scalars, such as a temperature; else as for the rest.
    """

    learning_rate: float
    weight_decay: float = 0.0
    num_epochs: int = 20
    batch_size: int | None = None
    scalar_learning_rate: float | None = None


WARMUP_SHARE = 0.1


def train(
    method: Method, splits: dict[str, EmbeddingSplit], settings: Training, *, seed: int, device: str = "cpu"
) -> dict[str, Any]:
    """
    Trains a method in place and leaves it in evaluation mode with the weights of its best epoch, the one of lowest
    loss, its own, on the validation split; epoch 0 are the weights that it starts with.

    Args:
        method (`Method`): built with `seed` set.
        splits (`dict[str, EmbeddingSplit]`): with `train` and `validation`.
        settings (`Training`): how.
        seed (`int`): of the order of the batches and the dropout.
        device (`str`, *optional*, defaults to `"cpu"`): where to train.

    Returns:
        `seconds`, `steps`, `batch_size`, `best_epoch`, `initial_loss`, on the validation split before training, and
        `validation_losses`, one for each epoch.

    Raises:
        ValueError: if the training captions do not fill a given batch, or a validation loss is not finite.
    """
    pairs = FeaturePairs(splits["train"])
    if settings.batch_size is not None and len(pairs) < settings.batch_size:
        raise ValueError(
            f"{len(pairs)} training captions do not fill a batch of {settings.batch_size}: lower the batch size."
        )
    schedule_of_pairs = resolve_schedule(len(pairs), per_device_train_batch_size=settings.batch_size)
    batch_size = schedule_of_pairs.per_device_train_batch_size
    steps_an_epoch = len(pairs) // batch_size
    num_epochs = max(settings.num_epochs, math.ceil(SMALLEST_NUM_STEPS / steps_an_epoch))
    set_seed(seed)
    method.to(device)
    steps = num_epochs * steps_an_epoch
    optimizer = torch.optim.AdamW(_parameter_groups(method, settings), lr=settings.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP_SHARE * steps), steps)
    initial_loss = validation_loss(method, splits["validation"], batch_size, device)
    best, best_state, best_epoch, losses, seconds = math.inf, {}, 0, [], 0.0
    if math.isfinite(initial_loss):
        best, best_state = initial_loss, copy.deepcopy(method.state_dict())
    for epoch in tqdm(range(1, num_epochs + 1), desc="epochs", leave=False):
        started = time.perf_counter()
        method.train()
        for rows in torch.randperm(len(pairs)).split(batch_size):
            if len(rows) == batch_size:
                optimizer.zero_grad()
                method.loss(_batch(pairs, rows, device)).backward()
                optimizer.step()
                schedule.step()
        seconds += time.perf_counter() - started
        losses.append(validation_loss(method, splits["validation"], batch_size, device))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"The validation loss is {losses[-1]} after epoch {epoch}: lower the learning rate.")
        if losses[-1] < best:
            best, best_state, best_epoch = losses[-1], copy.deepcopy(method.state_dict()), epoch
    method.load_state_dict(best_state)
    method.eval()
    return {
        "seconds": seconds,
        "steps": steps,
        "batch_size": batch_size,
        "best_epoch": best_epoch,
        "initial_loss": initial_loss,
        "validation_losses": losses,
    }


@torch.no_grad()
def validation_loss(method: Method, split: EmbeddingSplit, batch_size: int, device: str) -> float:
    """Mean loss of a split in fixed random blocks of nearly equal size, about that of the training batches."""
    method.eval()
    pairs = FeaturePairs(split)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    blocks = order.tensor_split(max(1, round(len(pairs) / batch_size)))
    return sum(method.loss(_batch(pairs, rows, device)).item() * len(rows) for rows in blocks) / len(pairs)


def _batch(pairs: FeaturePairs, rows: torch.Tensor, device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in pairs.__getitems__(rows).items()}


def _parameter_groups(method: Method, settings: Training) -> list[dict[str, Any]]:
    scalar_learning_rate = settings.scalar_learning_rate or settings.learning_rate
    parameters = list(method.parameters())
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0},
        {
            "params": [each for each in parameters if each.ndim == 0],
            "weight_decay": 0.0,
            "lr": scalar_learning_rate,
        },
    ]
