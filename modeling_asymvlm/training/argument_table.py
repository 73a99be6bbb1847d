"""Every argument of transformers' `TrainingArguments`: supported by [`AsymVLMTrainer`], or refused in one sentence.

A field that stands in neither table came with a version of transformers that this one does not know:
`tests/training/test_argument_table.py` fails then. Names that an older version does not have are passed over.
"""

from dataclasses import dataclass
from typing import Any

from transformers.integrations import get_available_reporting_integrations


# Taken as they are, or with a meaning of ours that their help states.
SUPPORTED = frozenset(
    """
    output_dir per_device_train_batch_size per_device_eval_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps average_tokens_across_devices max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode torch_empty_cache_steps logging_strategy logging_steps logging_first_step
    log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay eval_on_start
    eval_accumulation_steps save_only_model save_strategy save_steps save_on_each_node save_total_limit hub_token
    hub_private_repo hub_model_id hub_revision load_best_model_at_end metric_for_best_model greater_is_better
    ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout skip_memory_metrics do_train do_eval
    resume_from_checkpoint local_rank logging_dir
    """.split()
)


@dataclass(frozen=True)
class Refused:
    """
    An argument that has to stay as it is.

    Args:
        allowed (`tuple`): its values that ask for nothing.
        reason (`str`): why it is refused, and what to do instead; the end of a sentence that names it.
    """

    allowed: tuple
    reason: str


OFF = (False, None)
REFUSED = {
    "optim_target_modules": Refused((None,), "the optimisers that project gradients are made for large matrices"),
    "warmup_ratio": Refused((None, 0.0), "a warmup_steps below 1 is the share of all steps"),
    "label_smoothing_factor": Refused((0.0,), "the objective contrasts pairs and has no labels to smooth"),
    "bf16_full_eval": Refused(OFF, "evaluation is in float32, since it decides which head is kept"),
    "fp16_full_eval": Refused(OFF, "evaluation is in float32, since it decides which head is kept"),
    "use_liger_kernel": Refused(OFF, "its kernels are those of language models"),
    "liger_kernel_config": Refused((None,), "its kernels are those of language models"),
    "use_cache": Refused(OFF, "there are no keys and values to cache"),
    "neftune_noise_alpha": Refused((None,), "the token embeddings are frozen: use input_dropout_prob of the head"),
    "auto_find_batch_size": Refused(
        OFF,
        "a smaller batch has fewer negatives, which is another objective: lower tile_size, which changes nothing "
        "but the memory",
    ),
    "include_num_input_tokens_seen": Refused(("no", *OFF), "cached features have no tokens"),
    "prediction_loss_only": Refused(OFF, "the loss is computed from the predictions of all pairs together"),
    "eval_do_concat_batches": Refused((True,), "the loss is computed from the predictions of all pairs together"),
    "eval_use_gather_object": Refused(OFF, "predictions are tensors, and objects would be gathered by pickle"),
    "include_for_metrics": Refused(
        ((), [], None), "compute_metrics gets the vectors and image_ids of all pairs alone"
    ),
    "batch_eval_metrics": Refused(OFF, "the metrics are of all pairs together"),
    "enable_jit_checkpoint": Refused(OFF, "SIGTERM ends training with a checkpoint as it is"),
    "push_to_hub": Refused(
        OFF,
        "it would upload the whole output folder while training, cached captions and pickled arguments included. "
        "Publish afterwards with `python -m modeling_asymvlm publish`",
    ),
    "hub_strategy": Refused(("every_save",), "nothing is uploaded while training: publish afterwards"),
    "hub_always_push": Refused(OFF, "nothing is uploaded while training: publish afterwards"),
    "accelerator_config": Refused(
        (None,), "AsymVLMTrainer shares out batches itself, the same for any number of processes"
    ),
    "parallelism_config": Refused((None,), "every process holds the whole head: start plain processes"),
    "dataloader_in_order": Refused((True,), "the order of the pairs is that of the seed, for any number of workers"),
    "remove_unused_columns": Refused(OFF, "AsymVLMTrainer uses the column image_ids"),
    "label_names": Refused((None, []), "the only labels are image_ids, which AsymVLMTrainer finds itself"),
    "train_sampling_strategy": Refused(
        ("random",),
        "every epoch is in random order: for one caption of an image in a batch pass one_caption_per_image",
    ),
    "length_column_name": Refused(("length",), "pairs are not grouped by length"),
    "fsdp": Refused(
        (None, "", [], False),
        "the head has a few million parameters, and every process holds all of it. Start plain "
        "processes with `accelerate launch`",
    ),
    "fsdp_config": Refused((None,), "every process holds the whole head: start plain processes"),
    "deepspeed": Refused(
        (None, False),
        "the head has a few million parameters, and every process holds all of it. Start plain "
        "processes with `accelerate launch`",
    ),
    "debug": Refused(("", [], None), "a loss or a weight that is not finite ends training with its name as it is"),
    "do_predict": Refused(OFF, "the test split is evaluated after training, or alone with do_eval"),
}

# Whose state is tensors and numbers of plain kinds, which a checkpoint without pickle holds, and which need no further
# package.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")


def check_training_arguments(arguments: Any) -> None:
    """
    Checks arguments before `TrainingArguments` itself completes them.

    Raises:
        ValueError: for one that is refused, an optimiser whose state cannot be saved, or a tracker in `report_to` that
            is not installed.
    """
    for name, refused in REFUSED.items():
        value = getattr(arguments, name, refused.allowed[0])
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in refused.allowed):
            raise ValueError(f"{name}={_shown(value)} is refused: {name} must stay off, since {refused.reason}.")
    optimizer = _shown(arguments.optim)
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optim={optimizer} is not supported: its state cannot be saved without pickle, or it needs packages that "
            f"nobody tried here. Choose one of {', '.join(OPTIMIZERS)}."
        )
    check_trackers(arguments.report_to)


def check_trackers(report_to: Any) -> None:
    """Raises `ValueError` for trackers of `report_to` that are not installed."""
    asked = [report_to] if isinstance(report_to, str) else list(report_to or ())
    missing = [name for name in asked if name not in ("none", "all", *get_available_reporting_integrations())]
    if missing:
        raise ValueError(
            f"report_to={missing[0]} is not installed, or unknown to transformers: install it, or choose "
            f"{', '.join(['none', *get_available_reporting_integrations()])}."
        )


def _shown(value: Any) -> str:
    return str(getattr(value, "value", value))
