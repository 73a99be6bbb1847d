"""Models in parts on the CPU or the disk: where they compute, and their weights between two calls.

`accelerate` hangs a hook on each part that brings its weights before it is called and takes them away after; in
between the part holds none but their shapes, on the meta device, and the tensors lie in a map beside the hook.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def _hooks(module: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """The parts of a module that have hooks of `accelerate`, by name, with each of their hooks."""
    for name, part in module.named_modules():
        hook: Any = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", () if hook is None else (hook,)):
            yield name, part, each


def computing_device(module: nn.Module) -> torch.device:
    """Where a module computes, offloaded or not; the meta device for one that has no weights anywhere."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type != "meta":
        return device
    places = (getattr(hook, "execution_device", None) for _, _, hook in _hooks(module))
    return torch.device(next((place for place in places if place is not None), device))


def stored_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dictionary of a module, with the tensors themselves where they are offloaded."""
    weights = module.state_dict()
    for prefix, part, hook in _hooks(module):
        kept: Any = getattr(hook, "weights_map", None)
        for name, _ in () if kept is None else part.named_parameters(recurse=False):
            whole = f"{prefix}.{name}" if prefix else name
            if weights[whole].is_meta:
                weights[whole] = kept[name].to(hook.execution_device)
    return weights


__all__ = ["computing_device", "stored_weights"]
