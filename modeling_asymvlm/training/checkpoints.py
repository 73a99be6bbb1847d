"""Checkpoints of training: whole or absent, without pickle, of finite weights, and enough to resume bit by bit."""

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from ..model.checkpoint_weights import BACKBONE_PREFIX
from ..utils.durable_files import flush_to_disk
from ..utils.json_files import write_json
from .checks import check_weights
from .resumable_state import (
    check_can_be_saved,
    load_random_state,
    load_training_state,
    save_random_state,
    save_training_state,
)
from .run_record import check_same_run, read_run, run_identity, write_run


UNFINISHED = "unfinished-"


class CheckpointingTrainer(Trainer):
    """
    `Trainer` whose checkpoints appear whole or not at all, hold no pickle, know their run, and resume bit by bit.

    Attributes:
        seconds (`dict[str, float]`): what the run has cost, all its processes one after another, by `features` and
            `training`; the latter until the last checkpoint of those before and that of the present one.

    Raises:
        ValueError: on saving, if a weight is not finite; nothing is written then. On resuming, if a file of the
            checkpoint is damaged, or it is of another run.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds = {"features": 0.0, "training": 0.0}
        self._counted_until = time.perf_counter()

    def count_time(self) -> None:
        """Adds the time since the last call, or the beginning, to the cost of training."""
        now = time.perf_counter()
        self.seconds["training"] += now - self._counted_until
        self._counted_until = now

    @cached_property
    def _identity(self) -> dict[str, Any]:
        config = self.accelerator.unwrap_model(self.model).config
        return run_identity(config, self.args, self.train_dataset, self.eval_dataset)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(self.args.output_dir)) or True
        if isinstance(resume_from_checkpoint, str):
            record = read_run(Path(resume_from_checkpoint))
            for name, spent in record["seconds"].items():
                self.seconds[name] += spent
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As in `Trainer`. Raises `ValueError` for an optimiser or a schedule whose state could not be saved."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        check_can_be_saved(self.optimizer, scheduler)
        return scheduler

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As in `Trainer`, but the folder appears under its name when all of it is on the disk."""
        check_weights(self.accelerator.unwrap_model(self.model), self.state.global_step, self.args.learning_rate)
        self.store_flos()
        run = Path(self._get_output_dir(trial))  # of a search, each trial has its own
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished = run / f"{UNFINISHED}{folder.name}"
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self._wait_for_all()
        self.save_model(str(unfinished), _internal_call=True)
        if self.state.best_global_step is not None:  # which may be 0
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
            self.count_time()
            write_run(unfinished, self._identity, self.seconds)
            for path in [*unfinished.rglob("*"), unfinished]:
                if path.is_file():
                    path.chmod(unfinished.stat().st_mode & 0o666)  # safetensors would keep others from reading
                flush_to_disk(path)
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that this one goes over again
            unfinished.rename(folder)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As in `Trainer`. Raises `ValueError` if the weights do not fit the model, or are those of another run."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        check_same_run(folder, read_run(folder)["run"], self._identity)

    def _load_best_model(self) -> None:
        """As in `Trainer`, after all files of the checkpoint were compared with what was noted of them."""
        read_run(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

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
        check_weights(model, self.state.global_step, self.args.learning_rate)
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
