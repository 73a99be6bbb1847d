"""A model whose backbone stays frozen: in evaluation mode and without gradients, whatever is done to the whole."""

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbones import CAPTURE, image_output_of, text_output_of
from .checkpoint_weights import BACKBONE_PREFIX
from .offloading import computing_device
from .text_head import ProbabilisticTextHead
from .text_inputs import prepare_text


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

    @property
    def device(self) -> torch.device:
        """Where the model computes and takes its inputs, though it be offloaded."""
        return computing_device(self)

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

    def _backbone(self) -> PreTrainedModel:
        if self.vlm is None:
            raise ValueError(
                "This model is a head without a backbone: pass cached text_features and image_features. To train one "
                "with its backbone from cached features, name both."
            )
        return self.vlm

    def _text_tower(self) -> PreTrainedModel:
        vlm = self._backbone()
        towers = (getattr(vlm, name, None) for name in ("text_model", "text_encoder"))
        return next((tower for tower in towers if tower is not None), vlm)

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the backbone's text tower."""
        return self._text_tower().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings of the backbone's text tower; they are frozen too."""
        self._text_tower().set_input_embeddings(value)
        self._freeze_backbone()

    def backbone_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        The frozen backbone's raw, unnormalised text features of shape `(batch, projection_dim)`, in its dtype: what
        the head takes, and what is cached to train it. Arguments as for [`~AsymVLMModel.get_text_features`].
        """
        return self._text_output(input_ids, attention_mask, token_type_ids).pooler_output

    def backbone_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> torch.Tensor:
        r"""
        The frozen backbone's raw, unnormalised image features of shape `(batch, projection_dim)`, in its dtype.
        Arguments as for [`~AsymVLMModel.get_image_features`].
        """
        return self._image_output(
            pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            interpolate_pos_encoding=interpolate_pos_encoding,
        ).pooler_output

    def _text_output(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        **capture: bool | None,
    ) -> Any:
        """What the backbone makes of tokens, its raw features as `pooler_output`; or those that are cached, alone."""
        if (input_ids is None) == (text_features is None):
            raise ValueError("Pass either input_ids or text_features.")
        if input_ids is None:
            return BaseModelOutputWithPooling(pooler_output=text_features)
        vlm = self._backbone()
        inputs = prepare_text(
            input_ids,
            attention_mask,
            token_type_ids,
            max_length=self.config.text_max_length,
            pad_token_id=self.config.text_pad_token_id,
            use_attention_mask=self.config.text_use_attention_mask,
        )
        return text_output_of(vlm, **inputs, **self._captured(capture))

    def _image_output(
        self,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None = None,
        **inputs: torch.Tensor | bool | None,
    ) -> Any:
        """As [`~FrozenBackboneMixin._text_output`], of pixels."""
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either pixel_values or image_features.")
        if pixel_values is None:
            return BaseModelOutputWithPooling(pooler_output=image_features)
        return image_output_of(self._backbone(), pixel_values, **self._captured(inputs))

    def _captured(self, inputs: dict) -> dict:
        """The inputs; what else the backbone is asked for, where they leave it open, is as in the configuration."""
        asked = {name: getattr(self.config, name, None) or None for name in CAPTURE if inputs.get(name) is None}
        return {**inputs, **asked}
