"""Whether numbers that were kept come from the head at hand."""

import hashlib
import json

import torch

from .modeling_asymvlm import AsymVLMModel


def head_fingerprint(model: AsymVLMModel) -> str:
    """SHA-256 of all that makes embeddings and scores of a model's features: its head, its temperature and its law."""
    config = model.config
    law = [config.distribution, config.normalizer, config.mean_direction, config.hidden_act]
    settings = [*law, config.initial_concentration, config.normalize_text_features]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in sorted(model.text_head.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
