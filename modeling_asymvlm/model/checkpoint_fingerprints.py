"""What a backbone makes of one fixed text and picture: the width of its features, and whether its weights are the same
as when a head was trained on it."""

import hashlib
import json
import math
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .backbones import family_of, image_features_of, text_features_of
from .offloading import computing_device, stored_weights


SKETCH_SIZE = 8
SAMPLES_PER_TENSOR = 2
TEXT_LENGTH = 6

# Largest relative change of a sketch of features that is still taken for rounding, by the coarser of the two
# precisions. Other weights of the same shape give changes of about 1.4.
TOLERANCES = {"float64": 2e-3, "float32": 2e-3, "float16": 0.1, "bfloat16": 0.1}
SAME_WEIGHTS = 1e-5


def example_text(vlm_config: PreTrainedConfig, length: int) -> torch.Tensor:
    """Token ids `(1, length)` spread over the vocabulary; the last is the end-of-text token, where CLIP pools."""
    text_config = getattr(vlm_config, "text_config", vlm_config)
    vocabulary, padding = getattr(text_config, "vocab_size", 64), getattr(text_config, "pad_token_id", None)
    ids = [(position + 1) * vocabulary // (length + 2) for position in range(length)]
    ids = [(token + 1) % vocabulary if token == padding else token for token in ids]
    end = getattr(text_config, "eos_token_id", None)
    # 2 stands in the configurations of early CLIP checkpoints, which pool at the highest id instead.
    ids[-1] = end if isinstance(end, int) and 2 < end < vocabulary else vocabulary - 1
    return torch.tensor([ids])


def example_image(vlm_config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Inputs of one picture of fixed waves, in the shape that the backbone's vision tower takes."""
    vision_config: Any = getattr(vlm_config, "vision_config", None) or getattr(vlm_config, "image_config", vlm_config)
    if family_of(vlm_config).takes_patches:
        side = math.isqrt(vision_config.num_patches)
        shape = (1, side * side, vision_config.num_channels * vision_config.patch_size**2)
        mask = torch.ones(1, side * side, dtype=torch.int32)
        return {
            "pixel_values": _waves(shape),
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor([[side, side]]),
        }
    size = getattr(vision_config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": _waves((1, getattr(vision_config, "num_channels", 3), height, width))}


def _waves(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64)).float().reshape(shape)


def _features(vlm: PreTrainedModel, text_length: int | None) -> dict[str, torch.Tensor]:
    """The features `(dim,)` of the example text and image."""
    device = computing_device(vlm)
    input_ids = example_text(vlm.config, text_length or TEXT_LENGTH).to(device)
    image = {name: tensor.to(device) for name, tensor in example_image(vlm.config).items()}
    return {
        "text": text_features_of(vlm, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))[0],
        "image": image_features_of(vlm, **image)[0],
    }


def backbone_fingerprint(vlm: PreTrainedModel, *, text_length: int | None = None) -> tuple[dict[str, Any], int]:
    """
    A few numbers, fit for a configuration, by which the backbone is known again: fixed projections of some of its
    weights, and of its features of a fixed text and picture.

    Args:
        vlm (`PreTrainedModel`): the backbone with its weights, not quantised.
        text_length (`int`, *optional*): tokens of the text, for backbones that want texts of one length.

    Returns:
        The fingerprint, `{"dtype": ..., "weights": [...], "text": [...], "image": [...]}`, and the width of the
        features.

    Raises:
        ValueError: if the features of texts and images differ in width, or are not finite.
    """
    features = _features(vlm, text_length)
    widths = {name: len(vector) for name, vector in features.items()}
    if widths["text"] != widths["image"]:
        raise ValueError(
            f"{type(vlm).__name__} gives text features of width {widths['text']} and image features of width "
            f"{widths['image']}, so they do not share a space: it cannot be a backbone."
        )
    for name, vector in features.items():
        if not torch.isfinite(vector).all():
            raise ValueError(
                f"{type(vlm).__name__} gives {name} features that are not finite in {vlm.dtype}: are its weights "
                "damaged, or its numbers too large for this dtype?"
            )
    sketches = {name: _sketch(vector) for name, vector in features.items()}
    return {"dtype": str(vlm.dtype).removeprefix("torch."), "weights": _weights_sketch(vlm), **sketches}, widths[
        "text"
    ]


@torch.no_grad()
def _weights_sketch(vlm: PreTrainedModel) -> list[float]:
    """A sketch of a few values of every weight and buffer; not numbers where some are offloaded."""
    samples = []
    for tensor in (*vlm.parameters(), *vlm.buffers()):
        if tensor.is_meta:
            return [math.nan] * SKETCH_SIZE
        if tensor.is_floating_point() and tensor.numel():
            step = max(1, tensor.numel() // SAMPLES_PER_TENSOR)
            samples.append(tensor.reshape(-1)[step // 2 :: step])
    return _sketch(torch.cat([sample.to(samples[0].device) for sample in samples]))


def _sketch(vector: torch.Tensor) -> list[float]:
    """`SKETCH_SIZE` fixed projections of a vector, each reading every component."""
    values = vector.detach().double().cpu()
    directions = torch.sin(torch.arange(SKETCH_SIZE * len(values), dtype=torch.float64) ** 2)
    return [float(f"{value:.7g}") for value in (directions.reshape(SKETCH_SIZE, -1) @ values).tolist()]


def _relative_change(before: list[float], now: list[float]) -> float:
    difference = math.dist(before, now)
    return difference / max(math.hypot(*before), 1e-30)


def check_fingerprint(
    recorded: dict[str, Any], vlm: PreTrainedModel, source: str, *, text_length: int | None = None
) -> None:
    """
    Compares a backbone with the one that a head was trained on: by its weights, which takes milliseconds, and only
    where these differ, as in another precision or another version's layout, by its features of a fixed example.

    Args:
        recorded (`dict`): what [`backbone_fingerprint`] gave.
        vlm (`PreTrainedModel`): the backbone that was loaded.
        source (`str`): where it came from, for the message.
        text_length (`int`, *optional*): as for [`backbone_fingerprint`].

    Raises:
        ValueError: if the features differ by more than the rounding of the coarser of the two precisions.
    """
    if _relative_change(recorded["weights"], _weights_sketch(vlm)) <= SAME_WEIGHTS:
        return
    found, _ = backbone_fingerprint(vlm, text_length=text_length)
    tolerance = max(TOLERANCES.get(fingerprint["dtype"], 0.1) for fingerprint in (recorded, found))
    for name in ("text", "image"):
        change = _relative_change(recorded[name], found[name])
        if not change <= tolerance:
            raise ValueError(
                f"{source} is not the backbone that this head was trained on: its {name} features of a fixed example "
                f"differ by {change:.2g} in relative norm, {tolerance:g} at most being rounding. Restore the original "
                "backbone, or train a head for this one."
            )


def head_fingerprint(model: Any) -> str:
    """SHA-256 of all that makes embeddings and scores of a model's features: head, temperature and distribution."""
    config = model.config
    names = [config.distribution, config.normalizer, config.mean_direction, config.hidden_act]
    settings = [*names, config.initial_concentration, config.normalize_text_features]
    digest = hashlib.sha256(json.dumps(settings).encode())
    weights: Any = stored_weights(model.text_head)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
