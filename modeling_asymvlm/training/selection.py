"""Which head of a run is kept: patience after warm-up, and the evaluation at which the kept head was judged."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .recall import IMAGE_TO_TEXT, TEXT_TO_IMAGE


FITTED_LOSS, FITTED_SCALE, AT_BOUND = "fitted_loss", "fitted_logit_scale", "fitted_at_bound"


# Metrics of every evaluation that can choose a head; `compute_metrics` may add others.
METRICS = ("loss", FITTED_LOSS, TEXT_TO_IMAGE, IMAGE_TO_TEXT)


def check_metric(args: TrainingArguments, *, has_own_metrics: bool) -> None:
    """Raises `ValueError` if `metric_for_best_model` is no metric of an evaluation, and there are no others."""
    if not has_own_metrics and metric_name(args).removeprefix("eval_") not in METRICS:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model} is no metric of an evaluation: choose one of "
            f"{', '.join(f'eval_{name}' for name in METRICS)}, or pass compute_metrics, which gives it."
        )


def metric_name(args: TrainingArguments) -> str:
    """The metric that makes a head the best, as it stands in the log."""
    name = str(args.metric_for_best_model)
    return name if name.startswith("eval_") else f"eval_{name}"


def kept_evaluation(args: TrainingArguments, state: TrainerState) -> tuple[int, float, bool] | None:
    """
    Step, fitted temperature and whether it is at its bound of the head that is kept: the best, or the last without
    `load_best_model_at_end`. `None` if heads were not compared at their fitted temperatures, or it was not evaluated.
    """
    name = metric_name(args)
    if not name.endswith(FITTED_LOSS):
        return None
    prefix = name.removesuffix(FITTED_LOSS)
    step = state.best_global_step if args.load_best_model_at_end else state.global_step
    for entry in reversed(state.log_history):
        if entry["step"] == step and prefix + FITTED_SCALE in entry:
            return int(step), float(entry[prefix + FITTED_SCALE]), prefix + AT_BOUND in entry
    return None


class EarlyStopping(TrainerCallback):
    """
    Ends training after `patience` evaluations in a row without a better one. Those of the warm-up do not count. It
    reads the log of the run, and so goes on where a checkpoint left it.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        name, sign = metric_name(args), -1 if args.greater_is_better else 1
        values = {entry["step"]: sign * entry[name] for entry in state.log_history if name in entry}
        if values:
            last_good = max(min(values, key=values.__getitem__), args.get_warmup_steps(state.max_steps))
            if sum(step > last_good for step in values) >= self.patience:
                control.should_training_stop = True
