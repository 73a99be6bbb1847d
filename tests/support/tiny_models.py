"""A tiny CLIP and its processor, made on the spot."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


VISION = {"image_size": 32, "patch_size": 8}


def make_tiny_clip() -> CLIPModel:
    """A random CLIP of 0.05 M parameters, 24-dimensional, with a context of 16 tokens."""
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 1}
    config = CLIPConfig(text_config={**TOWER, **text}, vision_config={**TOWER, **VISION}, projection_dim=24)
    return CLIPModel(config).eval()


def make_tiny_processor() -> CLIPProcessor:
    """Words and pictures for `tiny_clip`; its end-of-text token closes every text."""
    words = {"<unk>": 0, "<pad>": 1, "red": 2, "picture": 3, "<end>": 98, **{str(n): 10 + n for n in range(40)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 98)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), fast)
