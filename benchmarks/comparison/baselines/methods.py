"""The methods of the comparison and their settings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.small_data import EVERY_SPECIFICITY, Setting, recipe
from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments
from modeling_asymvlm.training.schedule import DEFAULT_EPOCHS

from .asymvlm import AsymVLM
from .cosine import Cosine
from .nnn import NearestNeighborNormalization
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
    "num_epochs": DEFAULT_EPOCHS,
}


def _training(arguments: dict[str, Any]) -> Training:
    given = {name.replace("num_train_epochs", "num_epochs"): value for name, value in arguments.items()}
    if "num_epochs" in given:
        given["num_epochs"] = int(given["num_epochs"])
    return Training(**{**DEFAULT_TRAINING, **given})


def _asymvlm(label: str, distribution: str, **settings: Any) -> Entry:
    """A head of the recipe `learned` with some of its arguments replaced."""
    head, arguments = recipe("learned")
    return Entry(
        label, AsymVLM, {"distribution": distribution, **head, **settings}, _training(arguments), drawn=not settings
    )


def _setting(label: str, distribution: str, setting: Setting) -> Entry:
    head, arguments = setting
    settings = {"distribution": distribution, "calibrated": True, **head}
    return Entry(label, AsymVLM, settings, _training(arguments), drawn=distribution == PS)


METHODS: dict[str, Entry] = {
    "cosine": Entry("cosine of the backbone", Cosine),
    "nnn": Entry("cosine, NNN", NearestNeighborNormalization, drawn=False),
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
    "vmf-small-data": _setting("AsymVLM vMF, default", VMF, recipe("default")),
    "ps-small-data": _setting("AsymVLM PS, default", PS, recipe("default")),
    "vmf-input-dropout": _setting("AsymVLM vMF, input dropout", VMF, EVERY_SPECIFICITY),
    "ps-input-dropout": _setting("AsymVLM PS, input dropout", PS, EVERY_SPECIFICITY),
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
