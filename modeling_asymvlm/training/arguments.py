"""Arguments of training, with the defaults of a head on frozen features."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class AsymVLMTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with defaults for a head on frozen features: AdamW with a cosine schedule for a few epochs of
    large batches, evaluated and saved every epoch, of which the best by validation loss is kept. `evaluate_only` says
    whether `do_eval` was asked for without `do_train`.
    """

    _argument_group_name = "training"

    output_dir: str = field(default="outputs/asymvlm", metadata={"help": "Folder for the model, figures and card."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training captions."})
    per_device_train_batch_size: int = field(
        default=1024, metadata={"help": "Pairs contrasted on each device; more pairs give more negatives."}
    )
    per_device_eval_batch_size: int = field(
        default=4096,
        metadata={"help": "Pairs contrasted at a time in the validation loss, which depends on this number."},
    )
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=1.0, metadata={"help": "Of the head's matrices; never of tau or the biases."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up, or below 1 the share of all steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to compute the validation loss."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint of the head."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept besides the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the head of lowest validation loss."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "What makes a head the best."})
    greater_is_better: bool | None = field(default=False, metadata={"help": "Whether more of it is better."})
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
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better validation loss."}
    )

    def __post_init__(self) -> None:
        # `TrainingArguments` sets do_eval by itself where there is an evaluation strategy.
        self.evaluate_only = self.do_eval and not self.do_train
        super().__post_init__()
        for name in (
            "tile_size",
            "early_stopping_patience",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}")
        if self.push_to_hub:
            raise ValueError(
                "push_to_hub must stay off: it would upload the whole output folder while training, cached captions "
                "and pickled arguments included. Publish afterwards with `python -m modeling_asymvlm publish`."
            )
        if self.fsdp or self.deepspeed:
            raise ValueError(
                f"fsdp={self.fsdp!r} and deepspeed={self.deepspeed!r} must stay off: the head has a few million "
                "parameters, and every process holds all of it. Start plain processes with `accelerate launch`."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay off: AsymVLMTrainer uses the column image_ids")
