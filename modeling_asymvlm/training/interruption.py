"""Ctrl-C and SIGTERM while training: a checkpoint after the step at hand, then a clean end."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveOnInterrupt(TrainerCallback):
    """
    Ends training after the step at hand, with a checkpoint, when one of the processes gets SIGINT or SIGTERM. A second
    Ctrl-C ends it at once; what was saved before stays whole.

    Attributes:
        interrupted (`bool`): whether training was ended so.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.interrupted = False
        if threading.current_thread() is threading.main_thread():  # the only one that may handle signals
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:  # all processes must stop after the same step
            flag = torch.tensor(self.interrupted, dtype=torch.int32, device=args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.interrupted = bool(flag)
        if self.interrupted:
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.interrupted:  # the epoch may not be over, so the head is saved but not judged
            control.should_save = True
            control.should_evaluate = False
            args.save_total_limit = None  # with a limit of 1, Trainer deletes all but the best as it ends

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._restore()
