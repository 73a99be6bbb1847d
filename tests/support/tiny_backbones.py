"""A tiny random model of every supported family, built from its configuration, with inputs for it."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONTEXT, VOCABULARY = 16, 99
TEXT = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "pad_token_id": 1}
END = {"bos_token_id": 97, "eos_token_id": 98}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
DIM = 24


def clip_like(name: str, **vision: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(
            text_config={**TEXT, **END}, vision_config={**VISION, **vision}, projection_dim=DIM
        )
        return getattr(transformers, f"{name}Model")(config)

    return build


def siglip(name: str, **vision: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(
            text_config={**TEXT, **END, "projection_size": 32}, vision_config={**VISION, **vision}
        )
        return getattr(transformers, f"{name}Model")(config)

    return build


def align() -> PreTrainedModel:
    vision = {
        "image_size": 32,
        "width_coefficient": 0.1,
        "depth_coefficient": 0.1,
        "hidden_dim": 32,  # the width of its image features, rounded to eights
        "depthwise_padding": [],
    }
    text = {**TEXT, "pad_token_id": 0}
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=32)
    model = transformers.AlignModel(config)
    for module in model.vision_model.modules():  # its own initialisation lets the signal die out
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            module.weight.data.mul_(1.2)
    return model


def altclip() -> PreTrainedModel:
    text = {**TEXT, "max_position_embeddings": CONTEXT + 2, "project_dim": 32}
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIM)
    return transformers.AltCLIPModel(config)


def chinese_clip() -> PreTrainedModel:
    text = {**TEXT, "pad_token_id": 0}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIM)
    return transformers.ChineseCLIPModel(config)


def vision_text_dual_encoder() -> PreTrainedModel:
    text = transformers.RobertaConfig(**{**TEXT, "max_position_embeddings": CONTEXT + 2})
    vision = transformers.ViTConfig(**VISION)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=DIM)
    return transformers.VisionTextDualEncoderModel(config)


def groupvit() -> PreTrainedModel:
    vision = {**VISION, "depths": [1, 1, 0], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
    config = transformers.GroupViTConfig(
        text_config={**TEXT, **END}, vision_config=vision, projection_dim=DIM, projection_intermediate_dim=32
    )
    return transformers.GroupViTModel(config)


def tipsv2() -> PreTrainedModel:
    text = {**TEXT, "pad_token_id": 0}
    return transformers.Tipsv2Model(transformers.Tipsv2Config(text_config=text, vision_config=VISION))


def flava() -> PreTrainedModel:
    text = {**TEXT, "pad_token_id": 0}
    config = transformers.FlavaConfig(
        text_config=text,
        image_config=VISION,
        multimodal_config=TOWER,
        hidden_size=32,
        projection_dim=DIM,
        image_codebook_config={"hidden_size": 16, "vocab_size": 64, "num_groups": 2, "num_blocks_per_group": 1},
    )
    return transformers.FlavaModel(config)


def blip() -> PreTrainedModel:
    text = {**TEXT, **END, "pad_token_id": 0, "sep_token_id": 98, "encoder_hidden_size": 32}
    vision = {**VISION, "initializer_range": 0.02}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=DIM)
    return transformers.BlipForImageTextRetrieval(config)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": clip_like("CLIP"),
    "siglip": siglip("Siglip", image_size=32),
    "siglip2": siglip("Siglip2", num_patches=256, patch_size=16),
    "metaclip_2": clip_like("MetaClip2"),
    "align": align,
    "altclip": altclip,
    "chinese_clip": chinese_clip,
    "vision-text-dual-encoder": vision_text_dual_encoder,
    "clipseg": clip_like("CLIPSeg"),
    "groupvit": groupvit,
    "owlvit": clip_like("OwlViT"),
    "owlv2": clip_like("Owlv2"),
    "aimv2": clip_like("Aimv2"),
    "tipsv2": tipsv2,
    "flava": flava,
    "blip": blip,
}
# Families that the installed version of transformers does not have are left out.
FAMILIES = [name for name in BUILDERS if name in transformers.CONFIG_MAPPING]
WITHOUT_TEXT_MASK = ("siglip", "siglip2")


def tiny_backbone(family: str) -> PreTrainedModel:
    """A random model of the family, in evaluation mode."""
    torch.manual_seed(0)
    return BUILDERS[family]().eval()


def tiny_texts(family: str) -> dict[str, torch.Tensor]:
    """Four texts of unequal length, padded on the right as the family's own processor does."""
    generator = torch.Generator().manual_seed(1)
    length = CONTEXT if family in WITHOUT_TEXT_MASK else 10
    config = BUILDERS[family]().config.text_config
    input_ids = torch.randint(3, 97, (4, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, end in enumerate((10, 7, 5, 3)):
        input_ids[row, end - 1] = 98
        input_ids[row, end:] = 0 if config.pad_token_id is None else config.pad_token_id
        attention_mask[row, end:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def tiny_images(family: str) -> dict[str, torch.Tensor]:
    """Four images as the family's own processor gives them."""
    generator = torch.Generator().manual_seed(2)
    if family != "siglip2":
        return {"pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}
    mask = torch.ones(4, 16, dtype=torch.int32)
    mask[1, 12:] = 0
    shapes = torch.tensor([[4, 4], [3, 4], [4, 4], [2, 8]])
    pixels = torch.randn(4, 16, 3 * 16 * 16, generator=generator)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


@torch.no_grad()
def native_features(vlm: PreTrainedModel, texts: dict, images: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and image features as the family's own methods give them; BLIP's, which has none, from its own forward."""
    family = vlm.config.model_type
    if family == "blip":
        hooked: dict[str, torch.Tensor] = {}
        hooks = [
            getattr(vlm, name).register_forward_hook(
                lambda module, args, output, name=name: hooked.update({name: output})
            )
            for name in ("text_proj", "vision_proj")
        ]
        vlm(**texts, **images, use_itm_head=False)
        for hook in hooks:
            hook.remove()
        return hooked["text_proj"], hooked["vision_proj"]
    if family in WITHOUT_TEXT_MASK:
        texts = {"input_ids": texts["input_ids"]}
    features = vlm.get_text_features(**texts).pooler_output, vlm.get_image_features(**images).pooler_output
    return tuple(each[:, 0] for each in features) if family == "flava" else features
