"""Training of the probabilistic text head with the unified objective."""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from .objective import unified_loss
from .remote_code import published
from .weights import BACKBONE_PREFIX


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

    def __post_init__(self) -> None:
        # `TrainingArguments` sets do_eval by itself where there is an evaluation strategy.
        self.evaluate_only = self.do_eval and not self.do_train
        super().__post_init__()
        for name in ("tile_size", "per_device_train_batch_size", "per_device_eval_batch_size"):
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
                "and pickled arguments included. Publish afterwards with `python -m modeling_asymvlm.hub publish`."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay off: AsymVLMTrainer uses the column image_ids")


def _features(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the model's features; what asks for a loss is dropped, since the Trainer computes its own."""
    return {name: value for name, value in inputs.items() if name not in ("image_ids", "return_loss", "return_logits")}


class AsymVLMTrainer(Trainer):
    """
    `Trainer` of an [`AsymVLMModel`] with the unified objective, from pixels and tokens or from cached features. A PEFT
    model with adapters on its head is trained and saved by its adapters.

    The batches hold what [`AsymVLMModel.forward`] takes, with `image_ids` if several captions may share an image.
    `eval_loss` is the objective on the whole evaluation set in blocks of the evaluation batch size: no pair is dropped
    and none is contrasted with fewer than two. `compute_metrics` gets the natural parameters and the image vectors of
    all pairs as predictions and the `image_ids` as labels, and is called only where there are ids.

    Raises:
        ValueError: if several GPUs are visible to one process, where `DataParallel` would split the contrast.
    """

    args: AsymVLMTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs, and DataParallel would contrast only within a GPU. Start "
                "one process a GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
            )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The unified objective of a batch of matching pairs, across processes; see [`unified_loss`]."""
        image_ids = inputs.get("image_ids")
        outputs = model(**_features(inputs), return_logits=False)
        loss = self._objective(outputs.text_embeds, outputs.image_embeds, image_ids, gather=True)
        return (loss, outputs) if return_outputs else loss

    def _objective(
        self,
        text_embeds: torch.Tensor,
        image_embeds: torch.Tensor,
        image_ids: torch.Tensor | None,
        *,
        gather: bool,
    ) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        return unified_loss(
            text_embeds,
            image_embeds,
            model.logit_scale,
            distribution=model.config.distribution,
            normalizer=model.config.normalizer,
            image_ids=image_ids,
            tile_size=self.args.tile_size,
            gather=gather,
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters with weight decay: the temperature, like the biases, is not among them."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("logit_scale")]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `Trainer`, which applies `dataloader_drop_last` to evaluation too; here no pair is dropped."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Per-pair outputs of a batch, from which [`evaluation_loop`] computes the loss: eta and z, and their ids."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            outputs = model(**_features(inputs), return_logits=False)
        return None, (outputs.text_embeds, outputs.image_embeds), inputs.get("image_ids")

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in `Trainer`, with `{metric_key_prefix}_loss` the mean objective over blocks of nearly equal size."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        arrays: list[Any] = [*output.predictions, *([] if output.label_ids is None else [output.label_ids])]
        per_pair = [torch.from_numpy(np.asarray(array)).to(self.args.device) for array in arrays]
        num_pairs = len(per_pair[0])
        num_blocks = max(1, min(math.ceil(num_pairs / self.args.eval_batch_size), num_pairs // 2))
        total = 0.0
        with torch.no_grad():
            for rows in torch.arange(num_pairs, device=self.args.device).tensor_split(num_blocks):
                text_embeds, image_embeds, *image_ids = (array[rows] for array in per_pair)
                loss = self._objective(text_embeds, image_embeds, image_ids[0] if image_ids else None, gather=False)
                total += loss.item() * len(rows)
        metrics = {**(output.metrics or {}), f"{metric_key_prefix}_loss": total / num_pairs}
        return output._replace(metrics=metrics)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, which uploads the output folder; the model's code goes along."""
        with published(self.accelerator.unwrap_model(self.model).config):
            return super().push_to_hub(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`. Raises `ValueError` if the training pairs do not fill one batch."""
        train_dataset: Any = self.train_dataset
        num_pairs, batch = len(train_dataset), self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and num_pairs < batch:
            raise ValueError(
                f"{num_pairs} training pairs do not fill a batch of {batch} ({self.args.train_batch_size} on each of "
                f"{self.args.world_size} processes): lower per_device_train_batch_size."
            )
        return super().get_train_dataloader()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [name for name in load_result.missing_keys if not name.startswith(BACKBONE_PREFIX)]
        unexpected = list(load_result.unexpected_keys)
        if missing or unexpected:
            raise ValueError(f"The checkpoint is not of this model: missing {missing}, unexpected {unexpected}.")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        output_dir = output_dir or str(self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PreTrainedModel):
            # On the way only the head changes: a checkpoint without the frozen backbone is small, and is completed on
            # loading. What is saved by name is saved as the model's configuration says.
            on_the_way = os.path.basename(os.path.normpath(output_dir)).startswith(PREFIX_CHECKPOINT_DIR)
            head_only = on_the_way and model.config.base_model_name_or_path is not None
            model.save_pretrained(output_dir, state_dict=state_dict, save_backbone=False if head_only else None)
        else:  # a PEFT model around it, which saves its adapters alone
            model.save_pretrained(output_dir, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)
        with open(os.path.join(output_dir, "training_args.json"), "w", encoding="utf-8") as file:
            json.dump(self.args.to_sanitized_dict(), file, indent=2)
