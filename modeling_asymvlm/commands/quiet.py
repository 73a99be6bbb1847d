"""What the libraries below say that a user of a command can do nothing about."""

import logging
import os

import transformers


# Told of every head, whose training does not depend on them: it generates no tokens.
SPECIAL_TOKENS = "The tokenizer has new PAD/BOS/EOS tokens"


def be_quiet() -> None:
    """
    Leaves errors, warnings about the user's own data, and one progress bar at a time. Kernels that torchao does not
    find are for quantised training on GPUs.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when the library is imported
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers.trainer_utils").addFilter(lambda record: SPECIAL_TOKENS not in record.getMessage())
