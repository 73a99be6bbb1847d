"""The private methods of `Trainer` that are overridden or called are those that were read, in every supported version.

A method that has changed fails here, by name, before it is met in a run. Read what changed, adapt the override if need
be, and write down its new fingerprint.
"""

import hashlib
import inspect

import pytest
import transformers
from transformers import Trainer

from modeling_asymvlm.training.checkpoints import CheckpointingTrainer
from modeling_asymvlm.training.trainer import AsymVLMTrainer


# Called by the overrides, besides those that they override.
CALLED = ("_get_learning_rate", "_get_output_dir", "_determine_best_metric", "_prepare_inputs")
READ: dict[str, dict[str, str]] = {
    "_determine_best_metric": {"5.10.1": "7aa77355a0c3", "5.18.0": "7aa77355a0c3", "5.23.0": "7aa77355a0c3"},
    "_evaluate": {"5.10.1": "d8237204ce5f", "5.18.0": "64dfb995ce20", "5.23.0": "64dfb995ce20"},
    "_get_learning_rate": {"5.10.1": "158d12f9b950", "5.18.0": "158d12f9b950", "5.23.0": "158d12f9b950"},
    "_get_output_dir": {"5.10.1": "97172085342a", "5.18.0": "97172085342a", "5.23.0": "97172085342a"},
    "_get_train_sampler": {"5.10.1": "2cb85f83c75c", "5.18.0": "1580d7493244", "5.23.0": "1580d7493244"},
    "_issue_warnings_after_load": {"5.10.1": "7ccdd73aac16", "5.18.0": "7ccdd73aac16", "5.23.0": "7ccdd73aac16"},
    "_load_best_model": {"5.10.1": "0e183d55a9db", "5.18.0": "0e183d55a9db", "5.23.0": "0e183d55a9db"},
    "_load_from_checkpoint": {"5.10.1": "4711d0506786", "5.18.0": "4711d0506786", "5.23.0": "a2804e8d93a2"},
    "_load_optimizer_and_scheduler": {"5.10.1": "bdcb956f06c4", "5.18.0": "741032f57d6f", "5.23.0": "741032f57d6f"},
    "_load_rng_state": {"5.10.1": "d5ebdfc0a088", "5.18.0": "d5ebdfc0a088", "5.23.0": "d5ebdfc0a088"},
    "_load_scaler": {"5.10.1": "c0695f791164", "5.18.0": "c0695f791164", "5.23.0": "c0695f791164"},
    "_prepare_inputs": {"5.10.1": "8f8c4e430d2f", "5.18.0": "8f8c4e430d2f", "5.23.0": "8f8c4e430d2f"},
    "_save": {"5.10.1": "bf720120f407", "5.18.0": "4381aa568f59", "5.23.0": "b136889e8792"},
    "_save_checkpoint": {"5.10.1": "a9111e30faa9", "5.18.0": "a9111e30faa9", "5.23.0": "a9111e30faa9"},
}


def overridden() -> list[str]:
    """Private methods of `Trainer` that ours replace."""
    own = {**vars(AsymVLMTrainer), **vars(CheckpointingTrainer)}
    return sorted(name for name in own if name.startswith("_") and not name.endswith("__") and hasattr(Trainer, name))


def fingerprint(name: str) -> str:
    """Of the source of a method, signature and body."""
    return hashlib.sha256(inspect.getsource(getattr(Trainer, name)).encode()).hexdigest()[:12]


def test_every_private_method_in_use_was_read():
    assert sorted([*overridden(), *CALLED]) == sorted(READ)


@pytest.mark.parametrize("name", sorted(READ))
def test_a_method_is_the_one_that_was_read(name):
    versions = READ[name]
    newest = max(versions, key=lambda version: tuple(map(int, version.split("."))))
    expected = versions.get(transformers.__version__, versions[newest])
    assert fingerprint(name) == expected, f"Trainer.{name} of transformers {transformers.__version__} was never read"


@pytest.mark.parametrize("name", overridden())
def test_an_override_takes_what_the_method_takes(name):
    own = inspect.signature(getattr(AsymVLMTrainer, name)).parameters
    for parameter in inspect.signature(getattr(Trainer, name)).parameters:
        assert parameter in own, f"Trainer.{name} has the argument {parameter}, which the override lacks"
