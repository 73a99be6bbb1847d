"""Export of the text tower, tokens to a distribution on the unit hypersphere, to `torch.export` and ONNX."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..model.backbone_quantization import is_quantized
from ..model.modeling_asymvlm import AsymVLMModel


INPUT_NAMES = ("input_ids", "attention_mask")
OUTPUT_NAMES = ("mean_direction", "concentration")


class TextTower(nn.Module):
    """
    The frozen text tower and the head of a model as one module of two inputs and two outputs.

    Args:
        model ([`AsymVLMModel`]): a model with its backbone; its weights are shared.

    Raises:
        ValueError: if the model is a head without a backbone.
    """

    def __init__(self, model: AsymVLMModel):
        super().__init__()
        if model.vlm is None:
            raise ValueError("A head without a backbone has no text tower: its inputs are cached features.")
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): tokens, padded on either side.
            attention_mask (`torch.LongTensor` of shape `(batch, length)`): 0 at padding.

        Returns:
            The mean direction of shape `(batch, projection_dim)`, a unit vector (zero where the concentration is), and
            the concentration of shape `(batch,)`, both in float32.
        """
        context = self.model.config.text_max_length
        if context is not None and torch.compiler.is_exporting():
            # A lookup by position: a graph that is given a longer text fails here instead of cutting it in silence.
            inside = torch.ones(context, dtype=attention_mask.dtype, device=attention_mask.device)
            attention_mask = attention_mask * inside[torch.arange(attention_mask.shape[1], device=inside.device)]
        features = self.model.get_text_features(input_ids, attention_mask, return_dict=True)
        natural_parameter = features.pooler_output  # (batch, projection_dim)
        return F.normalize(natural_parameter, dim=-1), torch.linalg.vector_norm(natural_parameter, dim=-1)


def export_text_tower(model: AsymVLMModel) -> torch.export.ExportedProgram:
    """
    The [`TextTower`] in evaluation mode as a `torch.export` program of any batch size and any length up to the
    backbone's context; longer texts must be truncated by the tokenizer. Texts are padded inside the graph where the
    backbone wants them padded.

    Raises:
        ValueError: if the model has no backbone, or a quantised one.
    """
    tower = TextTower(model)
    if is_quantized(model.vlm):
        raise ValueError("A quantised backbone cannot be exported: load the model without quantization_config.")
    context = model.config.text_max_length
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=context)
    input_ids = torch.ones(2, 4 if context is None else max(2, context // 2), dtype=torch.long, device=model.device)
    was_training = model.training
    try:
        return torch.export.export(
            tower.eval(),
            (input_ids, torch.ones_like(input_ids)),
            dynamic_shapes={name: {0: batch, 1: length} for name in INPUT_NAMES},
        )
    finally:
        model.train(was_training)


def export_text_tower_to_onnx(model: AsymVLMModel, path: str | os.PathLike) -> Path:
    """
    Writes the text tower as an ONNX file with the inputs `input_ids` and `attention_mask`, int64 of shape
    `(batch, length)`, and the outputs `mean_direction` and `concentration`, as [`export_text_tower`] describes it.
    Needs `onnx` and `onnxscript`. Weights of 2 GB and more lie beside it in `{path}.data`.

    Args:
        model ([`AsymVLMModel`]): a model with its backbone, in float32 unless the runtime knows its dtype.
        path (`str` or `os.PathLike`): file to write; a failure leaves what was there.

    Returns:
        `Path` of the file.

    Raises:
        ValueError: if the model has no backbone, or a quantised one.
    """
    path = Path(path)
    program: Any = torch.onnx.export(
        export_text_tower(model), dynamo=True, input_names=INPUT_NAMES, output_names=OUTPUT_NAMES, verbose=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program.save(Path(folder) / path.name)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # the graph last
            os.replace(file, path.parent / file.name)
    return path


__all__ = ["TextTower", "export_text_tower", "export_text_tower_to_onnx"]
