"""One bar for a training, with its validation loss, in place of the Trainer's bars and dictionaries."""

from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState, TrainingArguments

from ..training.trainer import AsymVLMTrainer


class TrainingBar(TrainerCallback):
    """Shows the steps and the validation loss on a terminal, to which nothing is written otherwise."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="Training",
            unit=" steps",
            disable=True if args.disable_tqdm or not state.is_world_process_zero else None,  # None: but on a terminal
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        loss = kwargs["metrics"].get(str(args.metric_for_best_model))
        if self.bar is not None and loss is not None:
            self.bar.set_postfix_str(f"validation loss {loss:.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def show_one_bar(trainer: AsymVLMTrainer) -> None:
    """Takes the Trainer's own reports away, and adds the bar."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(TrainingBar())
