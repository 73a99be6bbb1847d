"""The probabilistic text head: raw text features of a backbone to a natural parameter on the unit hypersphere."""

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

    Attributes:
        training_dtype (`torch.dtype`, *optional*):
            bfloat16 or float16 for the products of the layers in training mode, which mixed-precision training sets.
            Its output is float32 nonetheless, and the evaluation mode does not know it.
    """

    def __init__(self, config: AsymVLMConfig):
        super().__init__()
        self.learns_direction = config.mean_direction == "learned"
        self.initial_concentration = config.initial_concentration
        widths = [config.projection_dim] + [config.hidden_size] * config.num_hidden_layers
        self.hidden_layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output_layer = nn.Linear(widths[-1], config.projection_dim if self.learns_direction else 1)
        if not self.learns_direction:
            nn.init.zeros_(self.output_layer.weight)
            nn.init.zeros_(self.output_layer.bias)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        self.training_dtype: torch.dtype | None = None

    def forward(self, text_features: torch.Tensor) -> torch.Tensor:
        """`text_features` of shape `(batch, projection_dim)` to eta of the same shape."""
        device_type = text_features.device.type
        mixed = self.training and self.training_dtype is not None
        with torch.autocast(device_type, enabled=False):
            text_features = text_features.to(at_least_float32(self.output_layer.weight).dtype)
            with torch.autocast(device_type, dtype=self.training_dtype, enabled=mixed):
                hidden = text_features
                for layer in self.hidden_layers:
                    hidden = self.dropout(self.activation(_linear(layer, hidden)))  # (batch, hidden_size)
                output = _linear(self.output_layer, hidden)
            output = output.to(text_features.dtype)
            if self.learns_direction:
                return output  # (batch, projection_dim)
            concentration = self.initial_concentration * torch.exp(output)  # (batch, 1)
            return concentration * F.normalize(text_features, dim=-1)  # (batch, projection_dim)


def _linear(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The layer in the dtype of `inputs`; it is called, not copied, so that an adapter around it takes part."""
    if layer.weight.dtype == inputs.dtype or torch.is_autocast_enabled(inputs.device.type):
        return layer(inputs)
    parameters = {name: at_least_float32(parameter) for name, parameter in layer.named_parameters()}
    return functional_call(layer, parameters, (inputs,))


__all__ = ["ProbabilisticTextHead"]
