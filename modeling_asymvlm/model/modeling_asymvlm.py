"""AsymVLM: a probabilistic text head on a frozen vision–text backbone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import backbone_class, image_features_of, text_features_of
from .checkpoint_loading import CheckpointLoadingMixin
from .checkpoint_saving import CheckpointSavingMixin
from .configuration_asymvlm import AsymVLMConfig
from .distributions import PowerSpherical, VonMisesFisher
from .frozen_backbone import FrozenBackboneMixin
from .objective import at_least_float32
from .text_head import ProbabilisticTextHead
from .text_inputs import prepare_text


@dataclass
class AsymVLMOutput(ModelOutput):
    """
    Output of [`AsymVLMModel`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `return_loss=True`):
            Unified InfoNCE objective of the batch, in nats.
        logits_per_image (`torch.FloatTensor` of shape `(num_images, num_texts)`, *optional*, returned with both
            modalities): tau times the log-likelihood ratio of each image under each text against the uniform density:
            0 is "no better than uniform". tau times the cosine for `distribution="deterministic"`.
        logits_per_text (`torch.FloatTensor` of shape `(num_texts, num_images)`, *optional*, returned with both
            modalities): the transpose of `logits_per_image`.
        text_embeds (`torch.FloatTensor` of shape `(num_texts, projection_dim)`, *optional*, returned with texts):
            Natural parameters eta: the direction is the mean direction mu, the norm is the concentration kappa.
        image_embeds (`torch.FloatTensor` of shape `(num_images, projection_dim)`, *optional*, returned with images):
            Unit vectors z.
        concentration (`torch.FloatTensor` of shape `(num_texts,)`, *optional*, returned with texts):
            kappa >= 0; 1 / kappa is the uncertainty of the text. Without meaning for `distribution="deterministic"`.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    concentration: torch.Tensor | None = None


class AsymVLMModel(CheckpointLoadingMixin, CheckpointSavingMixin, FrozenBackboneMixin, PreTrainedModel):
    r"""
    Composes any frozen `AutoModel` vision–text backbone with a [`ProbabilisticTextHead`]. Only the head learns; the
    backbone stays frozen and in evaluation mode.

    Example:

    ```python
    >>> from modeling_asymvlm import AsymVLMModel

    >>> model = AsymVLMModel.from_vlm_pretrained("openai/clip-vit-base-patch32", distribution="vmf")
    ```

    Args:
        config (`AsymVLMConfig`): of the backbone and the head.
        vlm (`PreTrainedModel`, *optional*):
            The backbone itself, which is frozen; by default one of `config.vlm_config` with random weights.
    """

    config_class = AsymVLMConfig
    base_model_prefix = "asymvlm"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    accepts_loss_kwargs = False
    # No attention of its own: each tower of the backbone checks for itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keep_in_fp32_modules_strict = ["text_head"]
    _keep_in_fp32_modules = ["text_head"]  # what the quantisers leave alone

    def __init__(self, config: AsymVLMConfig, vlm: PreTrainedModel | None = None):
        super().__init__(config)
        if config.projection_dim is None:
            raise ValueError("Set vlm_config, or projection_dim for a model without a backbone.")
        config.check_values()  # values may have been replaced after the configuration was made
        self.vlm = vlm
        if vlm is None and config.vlm_config is not None:
            self.vlm = backbone_class(config.vlm_config)._from_config(config.vlm_config)
        self.text_head = ProbabilisticTextHead(config)
        self.post_init()
        self._freeze_backbone()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: the head initialises itself when it is built, and loading leaves no weight uninitialised."""

    @property
    def logit_scale(self) -> nn.Parameter:
        """Temperature tau, which multiplies the log-likelihoods; a scalar, itself and not its logarithm."""
        return self.text_head.logit_scale

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the backbone's text tower."""
        vlm = self._backbone()
        return getattr(vlm, "text_model", vlm).get_input_embeddings()

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
        vlm = self._backbone()
        inputs = prepare_text(
            input_ids,
            attention_mask,
            token_type_ids,
            max_length=self.config.text_max_length,
            pad_token_id=self.config.text_pad_token_id,
            use_attention_mask=self.config.text_use_attention_mask,
        )
        return text_features_of(vlm, **inputs)

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
        return image_features_of(
            self._backbone(),
            pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )

    def _backbone(self) -> PreTrainedModel:
        if self.vlm is None:
            raise ValueError(
                "This model is a head without a backbone: pass cached text_features and image_features. To train one "
                "with its backbone from cached features, name both."
            )
        return self.vlm

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): tokens, padded as you like.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): for backbones that use them.
            text_features (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
                The backbone's raw text features, instead of tokens.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` of shape `(batch, projection_dim)` is eta: its norm is
            the concentration, its direction the mean direction.
        """
        if input_ids is not None and text_features is None:
            text_features = self.backbone_text_features(input_ids, attention_mask, token_type_ids)
            text_features = text_features.to(self.logit_scale.device)
        elif text_features is None or input_ids is not None:
            raise ValueError("Pass either input_ids or text_features.")
        self._check_width(text_features, "text_features")
        return BaseModelOutputWithPooling(pooler_output=self.text_head(text_features))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        image_features: torch.Tensor | None = None,
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor`, *optional*): images as the backbone's processor gives them.
            pixel_attention_mask, spatial_shapes, interpolate_pos_encoding (*optional*): for backbones that use them.
            image_features (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
                The backbone's raw image features, instead of pixels.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` of shape `(batch, projection_dim)` holds unit vectors.
        """
        if pixel_values is not None and image_features is None:
            image_features = self.backbone_image_features(
                pixel_values, pixel_attention_mask, spatial_shapes, interpolate_pos_encoding
            ).to(self.logit_scale.device)
        elif image_features is None or pixel_values is not None:
            raise ValueError("Pass either pixel_values or image_features.")
        self._check_width(image_features, "image_features")
        return BaseModelOutputWithPooling(pooler_output=F.normalize(at_least_float32(image_features), dim=-1))

    def _check_width(self, features: torch.Tensor, name: str) -> None:
        if features.ndim != 2 or features.shape[1] != self.config.projection_dim:
            raise ValueError(
                f"{name} must have shape (batch, {self.config.projection_dim}), the width of this model's backbone, "
                f"got {tuple(features.shape)}. Were they made with another backbone?"
            )

    def get_text_distribution(self, **text_inputs) -> VonMisesFisher | PowerSpherical:
        r"""
        The texts as distributions on the unit hypersphere, batch shape `(batch,)`.

        Trained concentrations are ordinal: the discrimination lies in tau times the log-likelihood, so that samples of
        these distributions spread wider than the images that a text retrieves.

        Args:
            text_inputs: as for [`~AsymVLMModel.get_text_features`].

        Raises:
            ValueError: if the model is deterministic.
        """
        distribution_class = self.config.law.distribution_class
        text_embeds = self.get_text_features(**text_inputs, return_dict=True).pooler_output
        return distribution_class.from_natural_parameter(text_embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        text_features: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        return_logits: bool = True,
    ) -> tuple | AsymVLMOutput:
        r"""
        Takes tokens and pixels, or the backbone's cached raw features, or one modality alone.

        Args:
            image_ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Identity of each pair's image: other captions of the same image are no negatives in the loss.
            return_loss (`bool`, *optional*): whether to compute the loss; row i of the texts belongs to row i of the
                images.
            return_logits (`bool`, *optional*, defaults to `True`): whether to compute the logits.

        The other arguments are those of [`~AsymVLMModel.get_text_features`] and [`~AsymVLMModel.get_image_features`].

        Raises:
            ValueError: without any input, with both a modality and its cached features, with features of a width that
                is not the backbone's, or if the loss is asked for with one modality alone.
        """
        has_text = input_ids is not None or text_features is not None
        has_image = pixel_values is not None or image_features is not None
        if not has_text and not has_image:
            raise ValueError(
                "Pass texts (input_ids or text_features), images (pixel_values or image_features) or both."
            )
        if return_loss and not (has_text and has_image):
            raise ValueError("The loss needs matching texts and images, but only one of them was passed.")

        text_embeds = image_embeds = concentration = logits_per_text = loss = None
        if has_text:
            text_embeds = self.get_text_features(
                input_ids, attention_mask, token_type_ids, text_features, return_dict=True
            ).pooler_output
            concentration = torch.linalg.vector_norm(text_embeds, dim=-1)
        if has_image:
            image_embeds = self.get_image_features(
                pixel_values,
                pixel_attention_mask,
                spatial_shapes,
                interpolate_pos_encoding,
                image_features,
                return_dict=True,
            ).pooler_output
        law = self.config.law
        if text_embeds is not None and image_embeds is not None:
            if return_logits:
                logits_per_text = self.logit_scale * law.scores(text_embeds, image_embeds)
            if return_loss:
                loss = law.loss(text_embeds, image_embeds, self.logit_scale, image_ids=image_ids)
        return AsymVLMOutput(
            loss=loss,
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            concentration=concentration,
        )


__all__ = ["AsymVLMModel", "AsymVLMOutput", "ProbabilisticTextHead"]
