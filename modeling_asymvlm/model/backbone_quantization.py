"""Quantised backbones: quantisation is how a frozen backbone is held in memory, not what a checkpoint holds."""

from typing import Any

from transformers import PreTrainedConfig


def is_quantized(vlm: Any) -> bool:
    """Whether a backbone was quantised when it was loaded."""
    return getattr(vlm, "hf_quantizer", None) is not None


def check_not_quantized(vlm_config: PreTrainedConfig) -> None:
    """Raises `ValueError` if the weights that this configuration speaks of are quantised already."""
    if getattr(vlm_config, "quantization_config", None) is not None:
        raise ValueError(
            "The backbone's weights are quantised already, and a head is composed with unquantised weights: name the "
            "repository that holds those, and pass quantization_config to quantise them on loading."
        )


def hand_quantizer_to_backbone(model: Any) -> None:
    """
    Marks the backbone as quantised instead of the whole model. transformers marks the whole, and would then neither
    train it, though its head is not quantised, nor leave the quantisation out of its `config.json`.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    model.vlm.hf_quantizer = quantizer
    model.vlm.is_quantized = True
    del model.hf_quantizer
    del model.config.quantization_config
    model.is_quantized = False


__all__ = ["check_not_quantized", "hand_quantizer_to_backbone", "is_quantized"]
