"""The probabilistic text head: raw text features of a backbone to a natural parameter on the unit hypersphere."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers.activations import ACT2FN

from .configuration_asymvlm import AsymVLMConfig
from .objective import at_least_float32


class ProbabilisticTextHead(nn.Module):
    """
    Multilayer perceptron with `num_hidden_layers` hidden layers and a linear output, initialised as `torch.nn.Linear`
    is, which gives eta = kappa * mu; and the temperature tau, `logit_scale`. It computes in float32 at least, under
    any autocast and whatever the dtype of its weights.

    Unless `mean_direction="learned"`, the output layer starts at zero: the head is the backbone's own direction with
    `initial_concentration` for every text before it is trained.

    Attributes:
        training_dtype (`torch.dtype`, *optional*):
            bfloat16 or float16 for the products of the layers in training mode, which mixed-precision training sets.
            Its output is float32 nonetheless, and the evaluation mode does not know it.
    """

    def __init__(self, config: AsymVLMConfig):
        super().__init__()
        self.mean_direction = config.mean_direction
        self.initial_concentration = config.initial_concentration
        self.normalizes_features = config.normalize_text_features
        self.input_dropout = nn.Dropout(config.input_dropout_prob)
        widths = [config.projection_dim] + [config.hidden_size] * config.num_hidden_layers
        self.hidden_layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        num_outputs = {"learned": widths[0], "refined": widths[0] + 1, "backbone": 1}[config.mean_direction]
        self.output_layer = nn.Linear(widths[-1], num_outputs)
        if self.mean_direction != "learned":
            nn.init.zeros_(self.output_layer.weight)
            nn.init.zeros_(self.output_layer.bias)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        self.training_dtype: torch.dtype | None = None

    def forward(self, text_features: torch.Tensor) -> torch.Tensor:
        """`text_features` of shape `(batch, projection_dim)` to eta of the same shape."""
        device_type = text_features.device.type
        mixed = self.training and self.training_dtype is not None
        with torch.autocast(device_type, enabled=False):
            text_features = text_features.to(at_least_float32(self.logit_scale).dtype)
            direction = F.normalize(text_features, dim=-1)  # (batch, projection_dim)
            scaled_direction = math.sqrt(text_features.shape[-1]) * direction  # entries of mean square 1
            hidden = self.input_dropout(scaled_direction if self.normalizes_features else text_features)
            with torch.autocast(device_type, dtype=self.training_dtype, enabled=mixed):
                for layer in self.hidden_layers:
                    hidden = self.dropout(self.activation(_linear(layer, hidden)))  # (batch, hidden_size)
                output = _linear(self.output_layer, hidden)
            output = output.to(text_features.dtype)
            if self.mean_direction == "learned":
                return output  # (batch, projection_dim)
            if self.mean_direction == "refined":
                direction = F.normalize(scaled_direction + output[:, :-1], dim=-1)
            return self.initial_concentration * torch.exp(output[:, -1:]) * direction  # (batch, projection_dim)


def _linear(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The layer in the dtype of `inputs`; it is called, not copied, so that an adapter around it takes part."""
    weight: Any = layer.weight
    if not isinstance(weight, torch.Tensor):  # quantised by `torch.ao.quantization.quantize_dynamic`: takes float32
        return layer(inputs.float()).to(inputs.dtype)
    if weight.dtype == inputs.dtype or torch.is_autocast_enabled(inputs.device.type):
        return layer(inputs)
    parameters = {name: at_least_float32(parameter) for name, parameter in layer.named_parameters()}
    return functional_call(layer, parameters, (inputs,))


__all__ = ["ProbabilisticTextHead"]
