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


def save_training_state(folder: Path, optimizer: Any, scheduler: Any, scaler: Any | None) -> None:
    """
    Writes the state of the optimiser, the schedule and, under float16, the gradient scaler.

    Raises:
        ValueError: for an optimiser whose state is neither tensors nor numbers per parameter.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{parameter}.{name}"] = value.detach().cpu().contiguous()
            elif value is None or isinstance(value, bool | int | float | str):
                values.setdefault(str(parameter), {})[name] = value
            else:
                raise ValueError(
                    f"The state {name!r} of {type(optimizer).__name__} is a {type(value).__name__}, which cannot be "
                    "saved without pickle. Choose another optim=, such as adamw_torch."
                )
    record = {
        "optimizer": {"values": values, "param_groups": state["param_groups"]},
        "scheduler": scheduler.state_dict(),
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
    for name, tensor in load_file(folder / OPTIMIZER_TENSORS).items():
        parameter, _, entry = name.partition(".")
        state.setdefault(int(parameter), {})[entry] = tensor
    for parameter, values in record["optimizer"]["values"].items():
        state.setdefault(int(parameter), {}).update(values)
    groups = record["optimizer"]["param_groups"]
    for group in groups:  # JSON knows no tuples, such as the betas of Adam are
        tuples = {name: tuple(value) for name, value in group.items() if isinstance(value, list)}
        group.update({name: value for name, value in tuples.items() if name != "params"})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict(record["scheduler"])
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
