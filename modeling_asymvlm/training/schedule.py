"""How long, in which batches and how often judged a head is trained, where the user does not say: a rule of the number
of training pairs."""

import math
from dataclasses import dataclass


SMALLEST_NUM_STEPS = 60
LARGEST_NUM_STEPS = 20_000
DEFAULT_EPOCHS = 20
NUM_EVALUATIONS = 16


@dataclass(frozen=True)
class Schedule:
    """
    Attributes:
        per_device_train_batch_size (`int`): pairs in a batch of one process.
        max_steps (`int`): optimiser steps.
        num_train_epochs (`float`): the passes over the training pairs that these are.
        eval_steps (`int`): steps from one evaluation to the next.
    """

    per_device_train_batch_size: int
    max_steps: int
    num_train_epochs: float
    eval_steps: int


def resolve_schedule(
    num_pairs: int,
    *,
    world_size: int = 1,
    global_train_batch_size: int = 1024,
    per_device_train_batch_size: int | None = None,
    num_train_epochs: float | None = None,
    max_steps: int = -1,
    gradient_accumulation_steps: int = 1,
    drop_last: bool = True,
    largest_batch: int | None = None,
) -> Schedule:
    """
    The schedule for a number of training pairs. What is given is taken as it is; for the rest:

    - a batch over all processes holds `global_train_batch_size` pairs, at most all that there are (`largest_batch`);
    - training takes 20 epochs, but at least 60 steps, since an epoch of a few hundred pairs is one, and at most
      20,000: 20 million pairs in batches of 1,024 are enough for a head, whatever there is;
    - it is evaluated about 16 times, at equal distances.

    Args:
        num_pairs (`int`): training pairs.
        world_size (`int`, *optional*, defaults to 1): processes.
        global_train_batch_size, per_device_train_batch_size, num_train_epochs, max_steps, gradient_accumulation_steps:
            as in [`AsymVLMTrainingArguments`], `None` or -1 where they are not given.
        drop_last (`bool`, *optional*, defaults to `True`): whether the last, smaller batch of an epoch is left out.
        largest_batch (`int`, *optional*, defaults to `num_pairs`): pairs that can stand in one batch.
    """
    batch = per_device_train_batch_size
    if batch is None:
        batch = max(1, min(global_train_batch_size, largest_batch or num_pairs) // world_size)
    batches = num_pairs / (batch * world_size)
    steps_an_epoch = max(
        1, math.ceil(max(1, (math.floor if drop_last else math.ceil)(batches)) / gradient_accumulation_steps)
    )
    if max_steps > 0:
        steps = max_steps
    elif num_train_epochs is not None:
        steps = math.ceil(num_train_epochs * steps_an_epoch)
    else:
        steps = min(max(SMALLEST_NUM_STEPS, DEFAULT_EPOCHS * steps_an_epoch), LARGEST_NUM_STEPS)
    return Schedule(batch, steps, steps / steps_an_epoch, max(1, round(steps / NUM_EVALUATIONS)))
