"""Batch, steps and evaluations: the rule of the number of pairs, and that what is given wins."""

import pytest

from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments
from modeling_asymvlm.training.schedule import resolve_schedule


# pairs, processes -> pairs a process, steps, steps between evaluations
RULE = [
    (2, 1, 2, 60, 4),
    (100, 1, 100, 60, 4),
    (600, 1, 600, 60, 4),
    (600, 2, 300, 60, 4),
    (675, 2, 337, 60, 4),
    (1_024, 1, 1_024, 60, 4),
    (3_000, 1, 1_024, 60, 4),
    (3_500, 1, 1_024, 60, 4),
    (5_000, 1, 1_024, 80, 5),
    (15_000, 1, 1_024, 280, 18),
    (15_000, 4, 256, 280, 18),
    (20_000, 1, 1_024, 380, 24),
    (600_000, 8, 128, 11_700, 731),
    (10**8, 1, 1_024, 20_000, 1_250),
    (3, 8, 1, 60, 4),
]


@pytest.mark.parametrize(("pairs", "processes", "batch", "steps", "every"), RULE)
def test_the_schedule_follows_the_number_of_pairs(pairs, processes, batch, steps, every):
    schedule = resolve_schedule(pairs, world_size=processes)
    assert (schedule.per_device_train_batch_size, schedule.max_steps, schedule.eval_steps) == (batch, steps, every)
    assert batch * processes <= max(pairs, processes)
    assert schedule.num_train_epochs == steps / max(1, pairs // (batch * processes))
    assert 15 <= steps / every <= 20


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1024, 280, 20.0, 18, 18)),
        ({"num_train_epochs": 3.0}, (1024, -1, 3.0, 3, 3)),
        ({"max_steps": 7}, (1024, 7, 0.5, 1, 1)),
        ({"per_device_train_batch_size": 100}, (100, 3000, 20.0, 188, 188)),
        ({"global_train_batch_size": 500}, (500, 600, 20.0, 38, 38)),
        ({"eval_steps": 5}, (1024, 280, 20.0, 5, 5)),
        ({"save_steps": 7}, (1024, 280, 20.0, 7, 7)),
        ({"eval_steps": 5, "save_steps": 10}, (1024, 280, 20.0, 5, 10)),
        ({"gradient_accumulation_steps": 4}, (1024, 80, 20.0, 5, 5)),
    ],
)
def test_what_is_given_is_taken(tmp_path, given, expected):
    arguments = AsymVLMTrainingArguments(output_dir=str(tmp_path), **given)
    resolved = arguments.resolved(arguments.schedule(15_000, world_size=1))
    names = ("per_device_train_batch_size", "max_steps", "num_train_epochs", "eval_steps", "save_steps")
    assert tuple(getattr(resolved, name) for name in names) == expected
    for name in names:  # the arguments of the user stay as they are, and serve other data
        assert getattr(arguments, name) == given.get(name, {"max_steps": -1}.get(name)) or name.endswith("_steps")


def test_a_batch_of_one_caption_an_image_holds_at_most_all_images(tmp_path):
    arguments = AsymVLMTrainingArguments(output_dir=str(tmp_path))
    assert arguments.schedule(900, world_size=1, largest_batch=180).per_device_train_batch_size == 180


@pytest.mark.parametrize("name", ["global_train_batch_size", "per_device_train_batch_size", "early_stopping_patience"])
def test_values_below_one_are_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AsymVLMTrainingArguments(output_dir=str(tmp_path), **{name: 0})
