"""Recipes of a head and its training, each as it differs from the defaults of the two classes of arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """
    Arguments of [`AsymVLMConfig`] (`head`) and of [`AsymVLMTrainingArguments`] (`training`).

    Example:

    ```python
    >>> from modeling_asymvlm import AsymVLMConfig
    >>> from modeling_asymvlm.training.recipes import RECIPES

    >>> AsymVLMConfig(projection_dim=512, **RECIPES["paper"].head).num_hidden_layers
    3
    ```
    """

    head: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


_LEARNED_HEAD = {
    "mean_direction": "learned",
    "normalize_text_features": False,
    "input_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.3,
    "hidden_size": 1024,
    "num_hidden_layers": 1,
    "initial_concentration": 10.0,
    "logit_scale_init": 1.0,
}

# `default` is for any amount of data. `learned` learns the direction afresh, for plentiful captions of every degree of
# specificity. `paper` is the published recipe; like the others it leaves biases and tau undecayed and drops the last,
# smaller batch.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "default": Recipe(),
        "learned": Recipe(_LEARNED_HEAD, {"learning_rate": 3e-3, "weight_decay": 1.0, "num_train_epochs": 10.0}),
        "paper": Recipe(
            {**_LEARNED_HEAD, "hidden_dropout_prob": 0.0, "num_hidden_layers": 3, "normalizer": "paper"},
            {
                "optim": "sgd",
                "optim_args": "momentum=0.9",
                "learning_rate": 1e-2,
                "weight_decay": 5e-4,
                "max_grad_norm": 0.0,
                "warmup_steps": 0.0,
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-6},
                "num_train_epochs": 200.0,
                "global_train_batch_size": 2048,
                "same_image_negatives": True,
                "early_stopping_patience": None,
            },
        ),
    }
)
