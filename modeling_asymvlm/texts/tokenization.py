"""Texts as tokens: taken apart once, checked against the backbone's context, and batched by like length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..utils.checks import check_strings


# Texts that a tokenizer takes apart at a time; its lists of Python numbers are large, and are not kept.
TEXTS_PER_CALL = 4096

# What a backbone takes of a tokenizer's output beside the attention mask.
TOKEN_INPUTS = ("input_ids", "token_type_ids")


@dataclass(frozen=True)
class TokenizedTexts:
    """
    The tokens of texts, without padding and whatever their number.

    Attributes:
        texts (`list[str]`): the texts.
        tokens (`dict[str, list[np.ndarray]]`):
            `input_ids` and, where the tokenizer gives them, `token_type_ids`: int64 of shape `(length,)` a text.
    """

    texts: list[str]
    tokens: dict[str, list[np.ndarray]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 of shape `(texts,)`."""
        return np.array([len(ids) for ids in self.tokens["input_ids"]], dtype=np.int64)

    def too_long(self, context: int | None) -> np.ndarray:
        """
        Which texts a backbone cuts, bool of shape `(texts,)`.

        Args:
            context (`int`, *optional*): tokens that it takes at most, `config.text_max_length`.
        """
        return self.lengths > (np.inf if context is None else context)

    def check_context(self, context: int | None) -> None:
        """Raises `ValueError` for the first text that is longer than the context, as for [`too_long`]."""
        for number in np.flatnonzero(self.too_long(context))[:1].tolist():
            raise ValueError(
                f"The text {self.texts[number][:40]!r}... has {self.lengths[number]} tokens, but the context of the "
                f"backbone is {context}: shorten it."
            )

    def padded(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """
        The inputs of the backbone for the texts of these numbers, int64 of shape `(batch, length)`; the attention mask
        tells the padding, which is zeros.
        """
        inputs = {
            name: pad_sequence([torch.from_numpy(of_texts[number]) for number in numbers], batch_first=True)
            for name, of_texts in self.tokens.items()
        }
        lengths = torch.from_numpy(self.lengths[list(numbers)])
        inputs["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return inputs

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Numbers of texts of like length, and their [`padded`] inputs; each text once."""
        order = np.argsort(self.lengths, kind="stable").tolist()
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            yield numbers, self.padded(numbers)


def tokenize_texts(processor: Any, texts: str | Sequence[str]) -> TokenizedTexts:
    """
    Takes texts apart, each once.

    Args:
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        texts (`str` or `Sequence[str]`): one text or several.

    Raises:
        TypeError: for what is no string.
        ValueError: without any text, and for one that is empty or of white space alone.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    check_texts(texts)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(texts), TEXTS_PER_CALL):
        found = tokenizer(text=texts[start : start + TEXTS_PER_CALL])
        for name in TOKEN_INPUTS:
            if name in found:
                tokens.setdefault(name, []).extend(np.array(ids, dtype=np.int64) for ids in found[name])
    return TokenizedTexts(texts, tokens)


def check_texts(texts: Sequence[str]) -> None:
    """Raises `TypeError` for what is no string, and `ValueError` for no text at all and for one that says nothing."""
    check_strings(texts, "Text")
    for number, text in enumerate(texts or [""]):
        if not text.strip():
            raise ValueError(f"Text {number} is empty: write something in words.")
