"""Which words make a text specific: its uncertainty beside its uncertainty without each of them."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from ..model.modeling_asymvlm import AsymVLMModel
from .encoding import text_concentration
from .tokenization import check_texts


@dataclass(frozen=True)
class WordUncertainty:
    """
    What a word does to the uncertainty of its text.

    Attributes:
        word (`str`): what stands between white space, punctuation included.
        start, end (`int`): `text[start:end]` is the word.
        uncertainty_without (`float`, *optional*): 1 / kappa of the text without this word; `None` for an only word.
        reduction (`float`, *optional*):
            By how much the word lowers the uncertainty, `uncertainty_without - uncertainty`; negative where the text
            is more certain without it, `None` for an only word.
    """

    word: str
    start: int
    end: int
    uncertainty_without: float | None
    reduction: float | None


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each word of a text."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def without_span(text: str, span: tuple[int, int]) -> str:
    """The text without one of its words and the white space after it."""
    return (text[: span[0]] + text[span[1] :].lstrip()).strip()


def texts_without_words(text: str) -> list[str]:
    """The text, and the text without each of its words; the text alone if it has but one."""
    spans = word_spans(text)
    return [text, *(without_span(text, span) for span in spans if len(spans) > 1)]


def word_effects(text: str, concentration: torch.Tensor) -> tuple[WordUncertainty, ...]:
    """
    The words of a text with what its uncertainty is without each.

    Args:
        text (`str`): the text.
        concentration (`torch.Tensor` of shape `(len(texts_without_words(text)),)`): of [`texts_without_words`].
    """
    spans = word_spans(text)
    uncertainty, *uncertainties_without = (1 / concentration).tolist()
    if len(spans) == 1:
        return (WordUncertainty(text[slice(*spans[0])], *spans[0], None, None),)
    return tuple(
        WordUncertainty(text[start:end], start, end, without, without - uncertainty)
        for (start, end), without in zip(spans, uncertainties_without, strict=True)
    )


@dataclass(frozen=True)
class TextUncertainty:
    """
    The uncertainty of a text and of its words.

    Attributes:
        text (`str`): as it was passed.
        uncertainty (`float`): 1 / kappa > 0; infinite for kappa = 0.
        words (`tuple[WordUncertainty, ...]`): in the order of the text.
    """

    text: str
    uncertainty: float
    words: tuple[WordUncertainty, ...]


def word_uncertainty(model: AsymVLMModel, processor: Any, text: str, *, batch_size: int = 256) -> TextUncertainty:
    """
    The uncertainty 1 / kappa of a text and, for each of its words, that of the text without it (leave one word out).

    Words are what stands between white space, so that a text in a script without spaces is one word. A word's effect
    is that of its deletion and of nothing else: effects do not add up, and of two words that say the same neither need
    have one.

    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode, on any device.
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        text (`str`): within the context of the backbone.
        batch_size (`int`, *optional*, defaults to 256): shortened texts at a time.

    Raises:
        TypeError: if the text is no string.
        ValueError: for a text of white space alone or longer than the context, and for a deterministic model.

    Example:

    ```python
    >>> result = word_uncertainty(model, processor, "a small red circle")
    >>> max(result.words, key=lambda word: word.reduction).word
    'red'
    ```
    """
    check_texts([text])
    texts = texts_without_words(text)
    concentration = text_concentration(model, processor, texts, batch_size=batch_size, too_long="raise")
    return TextUncertainty(text, (1 / concentration[0]).item(), word_effects(text, concentration))
