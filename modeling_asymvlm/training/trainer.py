"""Training of the probabilistic text head with the unified objective."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, rotate_checkpoints

from ..model.checkpoint_code import published
from ..model.checkpoint_weights import BACKBONE_PREFIX
from ..utils.durable_files import flush_to_disk
from ..utils.json_files import write_json
from .arguments import AsymVLMTrainingArguments
from .batches import GlobalOrder
from .interruption import SaveOnInterrupt
from .resumable_state import load_random_state, load_training_state, save_random_state, save_training_state


UNFINISHED = "unfinished-"


class _EpochOrder(TrainerCallback):
    """Tells the order of the pairs which epoch begins, through whatever is wrapped around it."""

    def __init__(self, order: GlobalOrder):
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.set_epoch(math.floor(state.epoch))


def _features(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the model's features; what asks for a loss is dropped, since the Trainer computes its own."""
    return {name: value for name, value in inputs.items() if name not in ("image_ids", "return_loss", "return_logits")}


class AsymVLMTrainer(Trainer):
    """
    `Trainer` of an [`AsymVLMModel`] with the unified objective, from pixels and tokens or from cached features. A PEFT
    model with adapters on its head is trained and saved by its adapters.

    The order of the pairs depends on `data_seed` (or `seed`) and the epoch alone, so any number of processes with the
    same pairs in a batch over all of them sees the same batches. Gradient accumulation does not enlarge the contrast:
    its batches are contrasted one by one. With `--bf16` or `--fp16` the products of the head's layers are in half
    precision while training; the densities, the objective and the evaluation stay in float32. Checkpoints appear whole
    or not at all, hold no pickle, and resume bit by bit. Ctrl-C and SIGTERM end training with a checkpoint.

    The batches hold what [`AsymVLMModel.forward`] takes, with `image_ids` if several captions may share an image.
    `eval_loss` is the objective on the whole evaluation set in blocks of the evaluation batch size: no pair is dropped
    and none is contrasted with fewer than two. `compute_metrics` gets the natural parameters and the image vectors of
    all pairs as predictions and the `image_ids` as labels, and is called only where there are ids.

    Raises:
        ValueError: if several GPUs are visible to one process, where `DataParallel` would split the contrast, or if
            the processes were started for FSDP or DeepSpeed.
    """

    args: AsymVLMTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs, and DataParallel would contrast only within a GPU. Start "
                "one process a GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "accelerate is set up for FSDP or DeepSpeed, which have nothing to shard in a head of a few million "
                "parameters. Choose plain multi-GPU or multi-CPU in `accelerate config`."
            )
        if self.args.bf16 or self.args.fp16:
            model = self.accelerator.unwrap_model(self.model)
            model.text_head.training_dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.interruption = SaveOnInterrupt()
        self.add_callback(self.interruption)

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
        return model.config.law.loss(
            text_embeds,
            image_embeds,
            model.logit_scale,
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.one_caption_per_image and not hasattr(train_dataset, "text_image_index"):
            raise ValueError(
                f"one_caption_per_image needs to know the images: {type(train_dataset).__name__} has no attribute "
                "text_image_index, as FeaturePairs has."
            )
        order = GlobalOrder(
            len(train_dataset),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            global_batch_size=self.args.train_batch_size * self.args.world_size,
            text_image_index=train_dataset.text_image_index if self.args.one_caption_per_image else None,
        )
        self.remove_callback(_EpochOrder)
        self.add_callback(_EpochOrder(order))
        return order

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As in `Trainer`, but the folder appears under its name when all of it is on the disk."""
        self.store_flos()
        run = Path(str(self.args.output_dir))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished = run / f"{UNFINISHED}{folder.name}"
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self._wait_for_all()
        self.save_model(str(unfinished), _internal_call=True)
        if self.state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == folder or best.exists():
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            save_random_state(unfinished / self._random_state_file)
            if self.args.should_save:
                save_training_state(unfinished, self.optimizer, self.lr_scheduler, self.accelerator.scaler)
        self._wait_for_all()
        if self.args.should_save:
            exportable = (*self.callback_handler.callbacks, self.control)
            states: Any = {
                type(part).__name__: part.state() for part in exportable if isinstance(part, ExportableState)
            }
            self.state.stateful_callbacks = states
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
            for path in [*unfinished.rglob("*"), unfinished]:
                flush_to_disk(path)
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that this one goes over again
            unfinished.rename(folder)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    @property
    def _random_state_file(self) -> str:
        return f"random_state_{self.args.process_index}.safetensors"

    def _wait_for_all(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_training_state(Path(checkpoint), self.optimizer, self.lr_scheduler, self.accelerator.scaler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Restored with the optimiser."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A process that the checkpoint does not know, as there were fewer, keeps the state of its seed."""
        if checkpoint is not None and (Path(checkpoint) / self._random_state_file).is_file():
            load_random_state(Path(checkpoint) / self._random_state_file)

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
            on_the_way = Path(output_dir).name.removeprefix(UNFINISHED).startswith(PREFIX_CHECKPOINT_DIR)
            head_only = on_the_way and model.config.base_model_name_or_path is not None
            model.save_pretrained(output_dir, state_dict=state_dict, save_backbone=False if head_only else None)
        else:  # a PEFT model around it, which saves its adapters alone
            model.save_pretrained(output_dir, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)
        write_json(Path(output_dir) / "training_args.json", self.args.to_sanitized_dict())
