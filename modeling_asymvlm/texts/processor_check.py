"""Whether a processor belongs to a backbone: told by a few texts and pictures when both are loaded."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model.modeling_asymvlm import AsymVLMModel
from .encoding import backbone_features
from .tokenization import tokenize_texts


REMEDY = "Load the processor that was published with the backbone."
NUM_TEXTS = 6
TOKENS_LOOKED_AT = 256  # for words to make these of
PICTURE_SIZES = ((48, 64), (64, 40), (56, 56))  # of which a processor makes one size
SAME = 1e-6  # features whose relative differences are smaller say nothing of their inputs


@torch.no_grad()
def check_processor(model: AsymVLMModel, processor: Any) -> None:
    """
    Embeds a few texts of the tokenizer's own words, and a few pictures if the processor takes them.

    Args:
        model (`AsymVLMModel`): with its backbone, on any device.
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): the backbone's, as the user takes it to be.

    Raises:
        ValueError: for token ids beyond the vocabulary, inputs that a tower refuses, different texts that get the same
            tokens, and features that are the same for all texts or pictures, or not finite.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    _check_texts(model, processor, tokenizer)
    if getattr(processor, "image_processor", None) is not None:
        _check_pictures(model, processor)


def _check_texts(model: AsymVLMModel, processor: Any, tokenizer: Any) -> None:
    texts = _probe_texts(tokenizer)
    if not texts:
        return
    tokenized = tokenize_texts(processor, texts)
    tokens = [inputs["input_ids"] for _, inputs in tokenized.batches(1)]
    added = set(tokenizer.get_added_vocab().values())
    highest = max(*(int(ids.max()) for ids in tokens), *(set(tokenizer.get_vocab().values()) - added))
    backbone = model.config.vlm_config
    num_known = getattr(getattr(backbone, "text_config", backbone), "vocab_size", None)
    if num_known is not None and highest >= num_known:
        raise ValueError(
            f"The processor does not fit the backbone: its tokenizer has token ids up to {highest}, but the text "
            f"tower knows {num_known} tokens. {REMEDY}"
        )
    if len({tuple(ids.flatten().tolist()) for ids in tokens}) == 1:
        raise ValueError(
            f"The processor does not fit the backbone: its tokenizer gives {texts[0]!r} and {texts[1]!r} the same "
            f"tokens. {REMEDY}"
        )
    try:
        features = backbone_features(model, tokenized)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"The processor does not fit the backbone: the text tower refuses its tokens ({error}). {REMEDY}"
        ) from error
    _check_features(features, "texts", f"such as {texts[0]!r} and {texts[1]!r}; its tokenizer may have another end")


def _probe_texts(tokenizer: Any) -> list[str]:
    """
    Different texts that begin with the same word: a tower that looks for another end of the text than the tokenizer
    writes takes the first token for it.
    """
    vocabulary = tokenizer.get_vocab()
    ids = sorted(set(vocabulary.values()) - set(tokenizer.all_special_ids))
    some = ids[:: max(1, len(ids) // TOKENS_LOOKED_AT)]
    words = dict.fromkeys(word for token in some if (word := tokenizer.decode([token]).strip()).isalnum())
    first, *others = list(words)[: NUM_TEXTS + 1] or [""]
    return [f"{first} {word}" for word in others] if len(others) > 1 else []


def _check_pictures(model: AsymVLMModel, processor: Any) -> None:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(256, size=(*size, 3), dtype=np.uint8)) for size in PICTURE_SIZES]
    shapes = "nothing"
    try:
        inputs = processor(images=pictures, return_tensors="pt")
        shapes = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in inputs.items())
        features = model.backbone_image_features(**inputs.to(model.device))
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"The processor does not fit the backbone: of pictures it makes {shapes}, which the image tower does not "
            f"take ({error}). {REMEDY}"
        ) from error
    _check_features(features, "pictures", "of noise; its sizes or mean and std may be another's")


def _check_features(features: torch.Tensor, kind: str, examples: str) -> None:
    features = features.float()
    if not torch.isfinite(features).all():
        raise ValueError(
            f"The backbone gives features that are NaN or infinite for {kind}: try another dtype, or load its weights "
            "again."
        )
    if (features - features[0]).abs().max() <= SAME * features.abs().max():
        raise ValueError(
            f"The processor does not fit the backbone: it gives different {kind} the same features, {examples}. "
            f"{REMEDY}"
        )
