"""Arguments of training, with the defaults of a head on frozen features."""

import copy
from dataclasses import dataclass, field

from transformers import TrainingArguments

from .argument_table import check_training_arguments
from .schedule import Schedule, resolve_schedule


@dataclass
class AsymVLMTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with defaults for a head on frozen features: AdamW with a cosine schedule in large batches,
    evaluated and saved before the first step and about 16 times on the way, of which the best by validation loss at
    its fitted temperature is kept. Batch, steps and evaluations follow the number of training pairs where they are not
    given: see [`schedule`]. What of `TrainingArguments` is supported, and why the rest is refused, stands in
    `argument_table.py`. `evaluate_only` says whether `do_eval` was asked for without `do_train`.
    """

    _argument_group_name = "training"

    output_dir: str = field(default="outputs/asymvlm", metadata={"help": "Folder for the model, figures and card."})
    num_train_epochs: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Passes over the training captions. Default: 20, but 60 steps at least and 20,000 at most."},
    )
    global_train_batch_size: int = field(
        default=1024,
        metadata={
            "help": "Pairs contrasted at a time over all devices, at most those that there are; more pairs give more "
            "negatives."
        },
    )
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Pairs contrasted on each device. Default: its share of global_train_batch_size."},
    )
    per_device_eval_batch_size: int = field(
        default=4096,
        metadata={"help": "Pairs contrasted at a time in the validation loss, which depends on this number."},
    )
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=1.0, metadata={"help": "Of the head's matrices; never of tau or the biases."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up, or below 1 the share of all steps."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to compute the validation loss."})
    eval_steps: float | None = field(
        default=None,
        metadata={"help": "Steps between evaluations, or below 1 the share of all. Default: about 16 evaluations."},
    )
    eval_on_start: bool = field(
        default=True,
        metadata={"help": "Evaluate before the first step, so that the untrained head can be kept as the best."},
    )
    save_strategy: str = field(default="steps", metadata={"help": "When to save a checkpoint of the head."})
    save_steps: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Steps between checkpoints. Default: those between evaluations."}
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept besides the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the head of lowest validation loss."})
    metric_for_best_model: str | None = field(
        default="eval_fitted_loss",
        metadata={
            "help": "What makes a head the best: eval_fitted_loss, the validation loss at its fitted temperature, "
            "which the head that is kept then has; eval_loss, that at its own; or eval_text_to_image_recall_at_1 and "
            "eval_image_to_text_recall_at_1, of the first 4,096 pairs."
        },
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more of it is better. Default: unless its name ends in loss."}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers to report to: names of installed ones, all or none."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: image_ids are used."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last, smaller batch in training; evaluation never drops a pair."}
    )
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Copy batches to pinned memory first."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    tile_size: int | None = field(
        default=None,
        metadata={"help": "Rows of the logit matrix held in memory at a time; the result does not depend on it."},
    )

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint-N folder of the run, or `last`: the last one, or the start where there is none."
        },
    )
    one_caption_per_image: bool = field(
        default=False,
        metadata={"help": "Let no batch hold two captions of an image; needs as many images as a batch has pairs."},
    )
    same_image_negatives: bool = field(
        default=False,
        metadata={
            "help": "Contrast a caption in training with the other captions of its image too, as the paper does."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations without a better one, counted after warm-up, if the best "
            "head is loaded at the end."
        },
    )

    def __post_init__(self) -> None:
        check_training_arguments(self)
        # `TrainingArguments` sets do_eval by itself where there is an evaluation strategy.
        self.evaluate_only = self.do_eval and not self.do_train
        # Evaluations and checkpoints go together; `TrainingArguments` needs numbers.
        interval = self.eval_steps or self.save_steps
        self.eval_steps, self.save_steps = self.eval_steps or interval or 1, self.save_steps or interval or 1
        super().__post_init__()
        if interval is None:
            self.eval_steps = self.save_steps = None
        if self.eval_strategy == "no":
            self.eval_on_start = False
        for name in (
            "tile_size",
            "early_stopping_patience",
            "global_train_batch_size",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.num_train_epochs is not None and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}")

    def schedule(self, num_pairs: int, world_size: int | None = None, *, largest_batch: int | None = None) -> Schedule:
        """
        Batch, steps and evaluations for a number of training pairs: what is given, and the rule of
        [`resolve_schedule`] for the rest.

        Args:
            num_pairs (`int`): training pairs.
            world_size (`int`, *optional*): processes; by default those of this run.
            largest_batch (`int`, *optional*, defaults to `num_pairs`): pairs that can stand in one batch.
        """
        return resolve_schedule(
            num_pairs,
            world_size=self.world_size if world_size is None else world_size,
            global_train_batch_size=self.global_train_batch_size,
            per_device_train_batch_size=self.per_device_train_batch_size,
            num_train_epochs=self.num_train_epochs,
            max_steps=self.max_steps,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            drop_last=self.dataloader_drop_last,
            largest_batch=largest_batch,
        )

    def resolved(self, schedule: Schedule) -> "AsymVLMTrainingArguments":
        """A copy in which what was not given stands as in the schedule, `save_steps` as its `eval_steps`."""
        arguments = copy.copy(self)
        arguments.per_device_train_batch_size = schedule.per_device_train_batch_size
        if self.max_steps > 0 or self.num_train_epochs is None:
            arguments.max_steps, arguments.num_train_epochs = schedule.max_steps, schedule.num_train_epochs
        arguments.eval_steps = self.eval_steps or schedule.eval_steps
        arguments.save_steps = self.save_steps or schedule.eval_steps
        return arguments
