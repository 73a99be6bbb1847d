"""The Trainer, its arguments, batches, resumable state."""

from ..utils.extras import require


require(__name__, "accelerate")
