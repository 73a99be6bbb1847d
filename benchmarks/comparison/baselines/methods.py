"""The methods of the comparison and their settings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.small_data import EVERY_SPECIFICITY
from benchmarks.small_data import RECOMMENDED as SMALL_DATA
from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments

from .asymvlm import AsymVLM
from .cosine import Cosine
from .pcmepp import PCMEPlusPlus
from .pfe import PFE
from .probvlm import ProbVLM
from .prolip import ProLIP
from .protocol import Method
from .training import Training


@dataclass(frozen=True)
class Entry:
    """
    A row of the comparison.

    Args:
        label (`str`): its name in tables and figures.
        build (`Callable`): takes the width of the features and `settings`.
        settings (`dict`, *optional*): arguments of `build`.
        training (`Training`, *optional*): `None` where there is nothing to train, and so no seed.
        drawn (`bool`, *optional*, defaults to `True`): whether the figures show it.
    """

    label: str
    build: Callable[..., Method]
    settings: dict[str, Any] = field(default_factory=dict)
    training: Training | None = None
    drawn: bool = True

    def description(self) -> dict[str, Any]:
        """What its results depend on, apart from code, data and seed."""
        training = self.training and asdict(self.training)
        return {"method": self.build.__name__, "settings": self.settings, "training": training}


VMF, PS = "vmf", "power_spherical"

DEFAULT_TRAINING: dict[str, Any] = {
    "learning_rate": AsymVLMTrainingArguments.learning_rate,
    "weight_decay": AsymVLMTrainingArguments.weight_decay,
    "num_epochs": int(AsymVLMTrainingArguments.num_train_epochs),
}


def _asymvlm(label: str, distribution: str, **settings: Any) -> Entry:
    drawn = not settings
    settings = {"distribution": distribution, **settings}
    return Entry(label, AsymVLM, settings, Training(**DEFAULT_TRAINING), drawn)


def _recommended(label: str, distribution: str, recommendation: tuple[dict, dict]) -> Entry:
    head, arguments = recommendation
    training = {name.replace("num_train_epochs", "num_epochs"): value for name, value in arguments.items()}
    settings = {"distribution": distribution, **head}
    return Entry(label, AsymVLM, settings, Training(**{**DEFAULT_TRAINING, **training}), drawn=distribution == PS)


METHODS: dict[str, Entry] = {
    "cosine": Entry("cosine of the backbone", Cosine),
    "pfe": Entry("PFE", PFE, {}, Training(3e-3, weight_decay=1e-4)),
    "pcmepp": Entry("PCME++", PCMEPlusPlus, {}, Training(5e-4, weight_decay=1e-4)),
    "pcmepp-no-pseudo": Entry(
        "PCME++, no pseudo-positives",
        PCMEPlusPlus,
        {"pseudo_positive_weight": 0.0},
        Training(2e-3, weight_decay=1e-4),
    ),
    "prolip": Entry("ProLIP", ProLIP, {}, Training(5e-4, weight_decay=0.2, scalar_learning_rate=5e-2)),
    "probvlm": Entry("ProbVLM", ProbVLM, {}, Training(3e-3)),
    "vmf": _asymvlm("AsymVLM vMF", VMF),
    "ps": _asymvlm("AsymVLM PS", PS),
    "vmf-small-data": _recommended("AsymVLM vMF, for small data", VMF, SMALL_DATA),
    "ps-small-data": _recommended("AsymVLM PS, for small data", PS, SMALL_DATA),
    "vmf-input-dropout": _recommended("AsymVLM vMF, input dropout", VMF, EVERY_SPECIFICITY),
    "ps-input-dropout": _recommended("AsymVLM PS, input dropout", PS, EVERY_SPECIFICITY),
    "vmf-both-sides": _asymvlm("vMF, both sides", VMF, sides=("text", "image")),
    "vmf-image-side": _asymvlm("vMF, image side only", VMF, sides=("image",)),
    "ps-image-side": _asymvlm("PS, image side only", PS, sides=("image",)),
    "vmf-paper-normalizer": _asymvlm("vMF, the paper's normaliser", VMF, normalizer="paper"),
    "vmf-no-normalizer": _asymvlm("vMF, no normaliser", VMF, normalizer="none"),
    "ps-no-normalizer": _asymvlm("PS, no normaliser", PS, normalizer="none"),
    "vmf-backbone-direction": _asymvlm("vMF, backbone's direction", VMF, mean_direction="backbone"),
    "ps-backbone-direction": _asymvlm("PS, backbone's direction", PS, mean_direction="backbone"),
    "vmf-unmasked": _asymvlm("vMF, same-image captions as negatives", VMF, mask_same_image=False),
    "vmf-deep": _asymvlm("vMF, three hidden layers", VMF, num_hidden_layers=3),
}
