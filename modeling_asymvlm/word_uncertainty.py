"""Which words make a text specific: its uncertainty beside its uncertainty without each of them."""

from dataclasses import dataclass
from typing import Any

from .modeling_asymvlm import AsymVLMModel
from .specificity import text_concentration
from .text_checks import check_texts
from .words import WordUncertainty, uncertainties_of_words, without_span, word_spans


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
    check_texts([text], processor, model.config.text_max_length)
    spans = word_spans(text)
    shortened = [without_span(text, span) for span in spans] if len(spans) > 1 else []
    concentration = text_concentration(model, processor, [text, *shortened], batch_size=batch_size)
    uncertainty, *uncertainties_without = (1 / concentration).tolist()
    return TextUncertainty(text, uncertainty, uncertainties_of_words(text, uncertainty, uncertainties_without))
