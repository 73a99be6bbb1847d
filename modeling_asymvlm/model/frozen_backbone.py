"""A model whose backbone stays frozen: in evaluation mode and without gradients, whatever is done to the whole."""

from typing import TYPE_CHECKING, Self

from transformers import PreTrainedModel

from .checkpoint_weights import BACKBONE_PREFIX
from .text_head import ProbabilisticTextHead


# A mixin of [`AsymVLMModel`] has no base of its own: a type checker takes what follows it in the bases of the model.
if TYPE_CHECKING:
    Mixed = PreTrainedModel
else:
    Mixed = object


class FrozenBackboneMixin(Mixed):
    """A frozen backbone `self.vlm`, which may be absent, and a head `self.text_head`, which alone learns."""

    vlm: PreTrainedModel | None
    text_head: ProbabilisticTextHead

    def _freeze_backbone(self) -> None:
        if self.vlm is not None:
            self.vlm.requires_grad_(False)
            if any(module.training for module in self.vlm.modules()):
                self.vlm.eval()

    def train(self, mode: bool = True) -> Self:
        """
        Sets the head's mode; the backbone stays in evaluation mode, so that dropout never moves its features.

        Raises:
            ValueError: if a parameter of the backbone, or of an adapter in it, asks for gradients that it never gets.
        """
        self.training = mode
        for module in self.children():
            module.train(mode and module is not self.vlm)
        if self.vlm is not None and mode:
            learning = [name for name, parameter in self.vlm.named_parameters() if parameter.requires_grad]
            if learning:
                raise ValueError(
                    f"Parameter {BACKBONE_PREFIX}{learning[0]} has requires_grad, but the backbone is frozen: its "
                    "features are computed without gradients, so it would never learn. Freeze it with "
                    "model.vlm.requires_grad_(False), and put adapters on the linear layers of text_head alone."
                )
        return self

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Changes nothing: the frozen backbone runs without gradients, so it keeps no activations to recompute."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freezes or unfreezes the head and the temperature; the backbone stays frozen."""
        super().requires_grad_(requires_grad)
        self._freeze_backbone()
        return self
