"""Training of the probabilistic text head with the unified objective."""

import inspect
import logging
import math
from collections.abc import Sized
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from ..model.checkpoint_code import published
from .arguments import AsymVLMTrainingArguments
from .batches import FeaturePairs, GlobalOrder
from .checkpoints import CheckpointingTrainer
from .checks import check_datasets, check_weights, diverged, kept_warnings, pair_warnings, run_warnings
from .interruption import SaveOnInterrupt
from .recall import RecallsAtOne
from .selection import AT_BOUND, FITTED_LOSS, FITTED_SCALE, EarlyStopping, check_metric, kept_evaluation
from .temperature import ObjectiveOfTemperature, fit_temperature


PAIRS_TO_FIT_ON = 4096

logger = logging.getLogger(__name__)


class _EpochOrder(TrainerCallback):
    """Tells the order of the pairs which epoch begins, through whatever is wrapped around it."""

    def __init__(self, order: GlobalOrder):
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.set_epoch(math.floor(state.epoch))


def _features(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the model's features; what asks for a loss is dropped, since the Trainer computes its own."""
    return {name: value for name, value in inputs.items() if name not in ("image_ids", "return_loss", "return_logits")}


class AsymVLMTrainer(CheckpointingTrainer):
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
    and none is contrasted with fewer than two. `eval_fitted_loss` is the same at the temperature that is best for
    these pairs (fitted on the first 4,096), `eval_fitted_logit_scale`. The head of the lowest is kept, the untrained
    one included, and gets that temperature, unless it is frozen, as by adapters of PEFT. `compute_metrics`
    gets the natural parameters and the image vectors of
    all pairs as predictions and the `image_ids` as labels, and is called only where there are ids.

    Attributes:
        warnings (`list[str]`): what is doubtful about the pairs, the run and the head that is kept, in sentences.

    Raises:
        ValueError: if several GPUs are visible to one process, where `DataParallel` would split the contrast, or if
            the processes were started for FSDP or DeepSpeed; while training, if a loss or a weight is not finite.
    """

    args: AsymVLMTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        given = inspect.signature(Trainer.__init__).bind(self, *args, **kwargs).arguments
        own: AsymVLMTrainingArguments = given.get("args") or AsymVLMTrainingArguments()
        pairs = given.get("train_dataset")
        check_datasets(pairs, given.get("eval_dataset"))
        check_metric(own, has_own_metrics=given.get("compute_metrics") is not None)
        num_pairs = len(pairs) if isinstance(pairs, Sized) else own.global_train_batch_size
        index = getattr(pairs, "text_image_index", None) if own.one_caption_per_image else None
        self.schedule = own.schedule(num_pairs, largest_batch=None if index is None else len(index.unique()))
        given.pop("self")
        super().__init__(**{**given, "args": own.resolved(self.schedule)})
        self.warnings: list[str] = []
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
        self._round_products(self.model)
        if self.args.early_stopping_patience is not None and self.args.load_best_model_at_end:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience))
        self.interruption = SaveOnInterrupt()
        self.add_callback(self.interruption)

    def _round_products(self, model: Any) -> None:
        """Sets the precision of the products in training, asked for here or by `accelerate launch`."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        if dtype is not None:
            self.accelerator.unwrap_model(model).text_head.training_dtype = dtype

    def call_model_init(self, trial: Any = None) -> Any:
        """As in `Trainer`: the model of a trial."""
        model = super().call_model_init(trial)
        self._round_products(model)
        return model

    def warn(self, sentence: str) -> None:
        """Notes a sentence in `warnings`, and says it once, whatever the number of processes."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            if self.is_world_process_zero():
                logger.warning(sentence)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """
        As in `Trainer`. Notes in `warnings` what is doubtful, and gives the head that is kept its temperature.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the checkpoint is saved; it ends a search too.
        """
        datasets = {"train": self.train_dataset, "validation": self.eval_dataset}
        splits = {name: pairs.split for name, pairs in datasets.items() if isinstance(pairs, FeaturePairs)}
        for sentence in [*pair_warnings(splits), *run_warnings(self.schedule.max_steps)]:
            self.warn(sentence)
        result = super().train(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        check_weights(model, self.state.global_step, self.args.learning_rate)
        if self.interruption.interrupted:
            raise KeyboardInterrupt
        kept = kept_evaluation(self.args, self.state)
        if kept is not None:
            step, logit_scale, at_bound = kept
            if model.logit_scale.requires_grad:
                with torch.no_grad():
                    model.logit_scale.fill_(logit_scale)
            else:
                self.warn(f"logit_scale is frozen at {model.logit_scale.item():.4g}; {logit_scale:.4g} fits best.")
            starts_as_backbone = isinstance(model, PreTrainedModel) and model.config.mean_direction != "learned"
            num_pairs = min(len(self.eval_dataset), PAIRS_TO_FIT_ON)  # type: ignore[arg-type]
            for sentence in kept_warnings(step, at_bound, num_pairs, starts_as_backbone=starts_as_backbone):
                self.warn(sentence)
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in `Trainer`. Raises `ValueError` if the loss is NaN or infinite, on all processes at once."""
        loss = super().training_step(*args, **kwargs)
        finite = torch.isfinite(loss).to(torch.int32)
        if self.args.world_size > 1:
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite:
            step, learning_rate = self.state.global_step + 1, self._get_learning_rate()
            raise diverged(f"the loss is {loss.item()}", step, learning_rate)
        return loss

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As in `Trainer`; that before the first step, which `skip_scheduler` tells, makes a candidate of the head."""
        if not skip_scheduler:
            return super()._evaluate(trial, ignore_keys_for_eval)
        if self.state.best_metric is not None or self.state.global_step:  # a run that goes on has had it
            return {}
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
        self._determine_best_metric(metrics, trial)
        if self.args.load_best_model_at_end:
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return metrics

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The unified objective of a batch of matching pairs, across processes; see [`unified_loss`]."""
        image_ids = None if self.args.same_image_negatives else inputs.get("image_ids")
        outputs = model(**_features(inputs), return_logits=False, return_dict=True)
        scale = self.accelerator.unwrap_model(self.model).logit_scale
        loss = self._objective(outputs.text_embeds, outputs.image_embeds, image_ids, scale, gather=True)
        return (loss, outputs) if return_outputs else loss

    def _objective(
        self,
        text_embeds: torch.Tensor,
        image_embeds: torch.Tensor,
        image_ids: torch.Tensor | None,
        logit_scale: torch.Tensor | float,
        *,
        gather: bool,
    ) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        return model.config.law.loss(
            text_embeds,
            image_embeds,
            logit_scale,
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

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As in `Trainer`; no pair is dropped, as in evaluation."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_test_dataloader(test_dataset)
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
            outputs = model(**_features(inputs), return_logits=False, return_dict=True)
        return None, (outputs.text_embeds, outputs.image_embeds), inputs.get("image_ids")

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        As in `Trainer`, with `{metric_key_prefix}_loss` the mean objective over blocks of nearly equal size, and
        `_fitted_loss` that at the best temperature, `_fitted_logit_scale`; `_fitted_at_bound` where it would fall
        further with a higher one; and `_text_to_image_recall_at_1`, `_image_to_text_recall_at_1` of the pairs that it
        was fitted on, among one another.
        """
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        arrays: list[Any] = [*output.predictions, *([] if output.label_ids is None else [output.label_ids])]
        per_pair = [torch.from_numpy(np.asarray(array)).to(self.args.device) for array in arrays]
        num_pairs = len(per_pair[0])
        num_blocks = max(1, min(math.ceil(num_pairs / self.args.eval_batch_size), num_pairs // 2))
        blocks = torch.arange(num_pairs, device=self.args.device).tensor_split(num_blocks)

        def loss_at(logit_scale: torch.Tensor | float) -> float:
            total = 0.0
            for rows in blocks:
                text_embeds, image_embeds, *ids = (array[rows] for array in per_pair)
                image_ids = ids[0] if ids else None
                loss = self._objective(text_embeds, image_embeds, image_ids, logit_scale, gather=False)
                total += loss.item() * len(rows)
            return total / num_pairs

        with torch.no_grad():
            model = self.accelerator.unwrap_model(self.model)
            metrics = {**(output.metrics or {}), f"{metric_key_prefix}_loss": loss_at(model.logit_scale)}
            if not math.isfinite(metrics[f"{metric_key_prefix}_loss"]) and self.is_in_train:
                raise diverged("the validation loss is not finite", self.state.global_step, self._get_learning_rate())
            objective, recalls = ObjectiveOfTemperature(), RecallsAtOne()
            law = model.config.law
            for rows in blocks:
                if not objective.num_pairs or objective.num_pairs + len(rows) <= PAIRS_TO_FIT_ON:
                    text_embeds, image_embeds, *ids = (array[rows] for array in per_pair)
                    scores = law.scores(text_embeds, image_embeds)
                    objective.add(scores, ids[0] if ids else None)
                    recalls.add(scores, ids[0] if ids else None)
            own = model.logit_scale.item()
            fitted = fit_temperature(
                objective, start=own if own > 0 else 1.0, smallest_loss=1 / (objective.num_pairs + 1)
            )
            metrics[f"{metric_key_prefix}_{FITTED_LOSS}"] = loss_at(fitted.logit_scale)
            metrics[f"{metric_key_prefix}_{FITTED_SCALE}"] = fitted.logit_scale
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in recalls.compute().items()}
            if fitted.at_bound:
                metrics[f"{metric_key_prefix}_{AT_BOUND}"] = 1.0
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
