"""Everything besides the weights that bit-exact resumption needs, as safetensors and JSON; nothing is pickled."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..utils.json_files import read_json, write_json


OPTIMIZER_TENSORS = "optimizer.safetensors"
TRAINING_STATE = "training_state.json"


# Of these, optimisers keep their state in tensors of kinds of their own, which safetensors does not know.
QUANTISED_OPTIMIZERS = ("torchao", "bitsandbytes")
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
TENSOR = "tensor"


def _plain(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A state as JSON has it, its tensors moved to `tensors`. Raises `ValueError` for what neither of them holds."""
    if type(value) in PLAIN_TENSORS:
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {TENSOR: place}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}.{number}", tensors) for number, item in enumerate(value)]
    if type(value) is dict and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{place}.{name}", tensors) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{place} is a {type(value).__name__}, which cannot be saved without pickle. Choose another optim= or "
        "lr_scheduler_type=, or pass an optimiser and a schedule of numbers and plain tensors."
    )


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What [`_plain`] was given; lists stay lists."""
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {name: _with_tensors(item, tensors) for name, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value


def check_can_be_saved(optimizer: Any, scheduler: Any) -> None:
    """
    Looks before training at what a checkpoint would have to hold.

    Raises:
        ValueError: for an optimiser or a schedule whose state is not made of numbers and plain tensors.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # of the wrapper of accelerate
    package = type(inner).__module__.partition(".")[0]
    if package in QUANTISED_OPTIMIZERS:
        raise ValueError(
            f"The state of {type(inner).__name__} of {package} is in tensors of its own kind, which cannot be saved "
            "without pickle: choose another optimiser, such as adamw_torch. The head has a few million parameters."
        )
    _plain(optimizer.state_dict()["param_groups"], f"The optimizer's group of {type(inner).__name__}", {})
    _plain(scheduler.state_dict(), f"The schedule {type(scheduler).__name__}", {})


def save_training_state(folder: Path, optimizer: Any, scheduler: Any, scaler: Any | None) -> None:
    """
    Writes the state of the optimiser, the schedule and, under float16, the gradient scaler.

    Raises:
        ValueError: for a state that is not made of numbers and plain tensors.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if type(value) in PLAIN_TENSORS:
                tensors[f"{parameter}.{name}"] = value.detach().cpu().contiguous()
            elif value is None or isinstance(value, bool | int | float | str):
                values.setdefault(str(parameter), {})[name] = value
            else:
                raise ValueError(
                    f"The state {name!r} of {type(optimizer).__name__} is a {type(value).__name__}, which cannot be "
                    "saved without pickle. Choose another optim=, such as adamw_torch."
                )
    record = {
        "optimizer": {"values": values, "param_groups": _plain(state["param_groups"], "group", tensors)},
        "scheduler": _plain(scheduler.state_dict(), "scheduler", tensors),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    write_json(folder / TRAINING_STATE, record)


def load_training_state(folder: Path, optimizer: Any, scheduler: Any, scaler: Any | None) -> None:
    """
    Restores what [`save_training_state`] wrote.

    Raises:
        FileNotFoundError: if the folder holds no such state.
    """
    if not (folder / TRAINING_STATE).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {TRAINING_STATE}: training goes on only from a checkpoint-N folder of a run."
        )
    record = read_json(folder / TRAINING_STATE, remedy="Go on from another checkpoint-N folder of the run.")
    state: dict[int, dict[str, Any]] = {}
    tensors = load_file(folder / OPTIMIZER_TENSORS)
    for name, tensor in tensors.items():
        parameter, _, entry = name.partition(".")
        if parameter.isdecimal():
            state.setdefault(int(parameter), {})[entry] = tensor
    for parameter, values in record["optimizer"]["values"].items():
        state.setdefault(int(parameter), {}).update(values)
    groups = _with_tensors(record["optimizer"]["param_groups"], tensors)
    for group in groups:  # JSON knows no tuples, such as the betas of Adam are
        tuples = {name: tuple(value) for name, value in group.items() if isinstance(value, list)}
        group.update({name: value for name, value in tuples.items() if name != "params"})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict(_with_tensors(record["scheduler"], tensors))
    if scaler is not None and record["scaler"] is not None:
        scaler.load_state_dict(record["scaler"])


def save_random_state(file: Path) -> None:
    """Writes the states of the random number generators of Python, NumPy and torch, on the CPU and all GPUs."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    rest = {"python": [version, gauss], "numpy": [name, position, has_gauss, cached]}
    save_file(tensors, file, metadata={"rest": json.dumps(rest)})


def load_random_state(file: Path) -> None:
    """Restores what [`save_random_state`] wrote; a GPU that the file does not know keeps its state."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        rest = json.loads(opened.metadata()["rest"])
    version, gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
