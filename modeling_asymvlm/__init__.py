"""AsymVLM: probabilistic text embeddings on the unit hypersphere for any frozen vision–text model.

Importing the package registers AsymVLM with `AutoConfig`, `AutoModel` and the pipelines. Names are imported when they
are first asked for.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .utils.extras import EXTRAS, missing_extra


if TYPE_CHECKING:
    from .calibration.calibration import Calibration
    from .calibration.conformal import ConformalSets, SelectiveAnswers
    from .model.configuration_asymvlm import AsymVLMConfig
    from .model.distributions import PowerSpherical, VonMisesFisher, product
    from .model.distributions_base import HypersphericalUniform
    from .model.modeling_asymvlm import AsymVLMModel, AsymVLMOutput
    from .model.objective import pair_scores, unified_loss
    from .model.text_head import ProbabilisticTextHead
    from .pairs.layouts import load_pairs
    from .reporting.evaluate_model import evaluate_split
    from .search.image_index import ImageIndex
    from .search.text_index import TextIndex
    from .store.builder import cached_features
    from .store.embedding_store import EmbeddingSplit, EmbeddingStore
    from .texts.encoding import encode_texts
    from .texts.entailment import entails
    from .texts.pipeline import TextUncertaintyPipeline
    from .texts.triage import triage
    from .texts.words import word_uncertainty
    from .training.arguments import AsymVLMTrainingArguments
    from .training.batches import FeaturePairs
    from .training.trainer import AsymVLMTrainer
    from .zero_shot.classifier import ZeroShotClassifier

# Where each name that is imported when it is first asked for lives.
_MODULES = {
    "AsymVLMConfig": "model.configuration_asymvlm",
    "AsymVLMModel": "model.modeling_asymvlm",
    "AsymVLMOutput": "model.modeling_asymvlm",
    "AsymVLMTrainer": "training.trainer",
    "AsymVLMTrainingArguments": "training.arguments",
    "Calibration": "calibration.calibration",
    "ConformalSets": "calibration.conformal",
    "EmbeddingSplit": "store.embedding_store",
    "EmbeddingStore": "store.embedding_store",
    "FeaturePairs": "training.batches",
    "HypersphericalUniform": "model.distributions_base",
    "ImageIndex": "search.image_index",
    "PowerSpherical": "model.distributions",
    "ProbabilisticTextHead": "model.text_head",
    "SelectiveAnswers": "calibration.conformal",
    "TextIndex": "search.text_index",
    "TextUncertaintyPipeline": "texts.pipeline",
    "VonMisesFisher": "model.distributions",
    "ZeroShotClassifier": "zero_shot.classifier",
    "cached_features": "store.builder",
    "encode_texts": "texts.encoding",
    "entails": "texts.entailment",
    "evaluate_split": "reporting.evaluate_model",
    "load_pairs": "pairs.layouts",
    "pair_scores": "model.objective",
    "product": "model.distributions",
    "triage": "texts.triage",
    "unified_loss": "model.objective",
    "word_uncertainty": "texts.words",
}

__all__ = [
    "AsymVLMConfig",
    "AsymVLMModel",
    "AsymVLMOutput",
    "AsymVLMTrainer",
    "AsymVLMTrainingArguments",
    "Calibration",
    "ConformalSets",
    "EmbeddingSplit",
    "EmbeddingStore",
    "FeaturePairs",
    "HypersphericalUniform",
    "ImageIndex",
    "PowerSpherical",
    "ProbabilisticTextHead",
    "SelectiveAnswers",
    "TextIndex",
    "TextUncertaintyPipeline",
    "VonMisesFisher",
    "ZeroShotClassifier",
    "__version__",
    "cached_features",
    "encode_texts",
    "entails",
    "evaluate_split",
    "load_pairs",
    "pair_scores",
    "product",
    "triage",
    "unified_loss",
    "word_uncertainty",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    except ImportError as error:
        if error.name in EXTRAS:
            raise missing_extra(name, error.name) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def _register() -> None:
    # The package's own command prints its help without torch, and registers before it does anything else.
    words = sys.orig_argv[1:3]
    if words != ["-m", __name__] and Path(words[0] if words else "").stem != "asymvlm":
        importlib.import_module(".registration", __name__)


_register()
