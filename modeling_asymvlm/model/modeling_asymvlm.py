"""AsymVLM: a probabilistic text head on a frozen vision–text backbone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import backbone_class
from .checkpoint_loading import CheckpointLoadingMixin
from .checkpoint_saving import CheckpointSavingMixin
from .configuration_asymvlm import AsymVLMConfig
from .distributions import PowerSpherical, VonMisesFisher
from .frozen_backbone import FrozenBackboneMixin
from .objective import at_least_float32
from .offloading import stored_weights
from .text_head import ProbabilisticTextHead


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
        pooler_output (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*, returned with one modality):
            `text_embeds` or `image_embeds`, where pipelines look for them.
        text_model_output, vision_model_output (`BaseModelOutputWithPooling`, *optional*, returned when
            `output_hidden_states=True` or `output_attentions=True`): what the frozen backbone made of tokens and
            pixels, raw features as `pooler_output`; texts stand padded on the right.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    concentration: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        """As in `ModelOutput`; outputs of the backbone become tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


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
        if getattr(config, "quantization_config", None) is not None:
            self._keep_in_fp32_modules = {"text_head"}  # where the quantisers look for what they leave alone
        self._freeze_backbone()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: the head initialises itself when it is built, and loading leaves no weight uninitialised."""

    @property
    def logit_scale(self) -> nn.Parameter | torch.Tensor:
        """
        Temperature tau, which multiplies the log-likelihoods; a scalar, itself and not its logarithm. The parameter,
        or a copy of it while the head is offloaded.
        """
        parameter = self.text_head.logit_scale
        return stored_weights(self.text_head)["logit_scale"] if parameter.is_meta else parameter

    def _on_device_of_head(self, features: torch.Tensor) -> torch.Tensor:
        """The features where the head computes; of an offloaded head that is known when it is called."""
        parameter = self.text_head.logit_scale
        return features if parameter.is_meta else features.to(parameter.device)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): tokens, padded as you like.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): for backbones that use them.
            text_features (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
                The backbone's raw text features, instead of tokens.
            output_attentions, output_hidden_states (`bool`, *optional*):
                Whether to return those of the backbone's text tower; by default as in the configuration.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` of shape `(batch, projection_dim)` is eta: its norm is
            the concentration, its direction the mean direction. The rest is the backbone's, of texts padded on the
            right.
        """
        capture = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output = self._text_output(input_ids, attention_mask, token_type_ids, text_features, **capture)
        output["pooler_output"] = self._embedded_texts(output.pooler_output)
        return output

    def _embedded_texts(self, text_features: torch.Tensor) -> torch.Tensor:
        self._check_width(text_features, "text_features")
        return self.text_head(self._on_device_of_head(text_features))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        image_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor`, *optional*): images as the backbone's processor gives them.
            pixel_attention_mask, spatial_shapes, interpolate_pos_encoding (*optional*): for backbones that use them.
            image_features (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
                The backbone's raw image features, instead of pixels.
            output_attentions, output_hidden_states (`bool`, *optional*):
                Whether to return those of the backbone's image tower; by default as in the configuration.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` of shape `(batch, projection_dim)` holds unit vectors.
            The rest is the backbone's.
        """
        output = self._image_output(
            pixel_values,
            image_features,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        output["pooler_output"] = self._embedded_images(output.pooler_output)
        return output

    def _embedded_images(self, image_features: torch.Tensor) -> torch.Tensor:
        self._check_width(image_features, "image_features")
        return F.normalize(at_least_float32(self._on_device_of_head(image_features)), dim=-1)

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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **unused: None,
    ) -> tuple | AsymVLMOutput:
        r"""
        Takes tokens and pixels, or the backbone's cached raw features, or one modality alone.

        Args:
            image_ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Identity of each pair's image: other captions of the same image are no negatives in the loss.
            return_loss (`bool`, *optional*): whether to compute the loss; row i of the texts belongs to row i of the
                images.
            return_logits (`bool`, *optional*, defaults to `True`): whether to compute the logits.
            unused: arguments of other models, such as the `inputs_embeds` that PEFT passes, while they are `None`.

        The other arguments are those of [`~AsymVLMModel.get_text_features`] and [`~AsymVLMModel.get_image_features`].

        Raises:
            TypeError: for an argument that is not there.
            ValueError: without any input, with both a modality and its cached features, with features of a width that
                is not the backbone's, or if the loss is asked for with one modality alone.
        """
        if given := sorted(name for name, value in unused.items() if value is not None):
            raise TypeError(f"AsymVLMModel.forward has no argument {given[0]!r}.")
        has_text = input_ids is not None or text_features is not None
        has_image = pixel_values is not None or image_features is not None
        if not has_text and not has_image:
            raise ValueError(
                "Pass texts (input_ids or text_features), images (pixel_values or image_features) or both."
            )
        if return_loss and not (has_text and has_image):
            raise ValueError("The loss needs matching texts and images, but only one of them was passed.")

        text_embeds = image_embeds = concentration = logits_per_text = loss = text_output = image_output = None
        capture = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if has_text:
            text_output = self._text_output(input_ids, attention_mask, token_type_ids, text_features, **capture)
            text_embeds = self._embedded_texts(text_output.pooler_output)
            concentration = torch.linalg.vector_norm(text_embeds, dim=-1)
        if has_image:
            image_output = self._image_output(
                pixel_values,
                image_features,
                pixel_attention_mask=pixel_attention_mask,
                spatial_shapes=spatial_shapes,
                interpolate_pos_encoding=interpolate_pos_encoding,
                **capture,
            )
            image_embeds = self._embedded_images(image_output.pooler_output)
        law = self.config.law
        if text_embeds is not None and image_embeds is not None:
            image_embeds = image_embeds.to(text_embeds.device)
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
            pooler_output=image_embeds if text_embeds is None else text_embeds if image_embeds is None else None,
            text_model_output=_captured_output(text_output),
            vision_model_output=_captured_output(image_output),
        )


def _captured_output(output: BaseModelOutputWithPooling | None) -> BaseModelOutputWithPooling | None:
    """The backbone's output if more than features was asked for: else its hidden states are not held in memory."""
    asked = output is not None and (output.hidden_states is not None or output.attentions is not None)
    return output if asked else None


__all__ = ["AsymVLMModel", "AsymVLMOutput", "ProbabilisticTextHead"]
