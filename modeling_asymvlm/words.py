"""The words of a text, and what the text's uncertainty is without each of them."""

import re
from dataclasses import dataclass


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


def uncertainties_of_words(
    text: str, uncertainty: float, uncertainties_without: list[float]
) -> tuple[WordUncertainty, ...]:
    """
    The words of a text with what the text's uncertainty is without each.

    Args:
        text (`str`): the text.
        uncertainty (`float`): its own.
        uncertainties_without (`list[float]`): without each of its words; empty for a text of one word.
    """
    spans = word_spans(text)
    if len(spans) == 1:
        return (WordUncertainty(text[slice(*spans[0])], *spans[0], None, None),)
    return tuple(
        WordUncertainty(text[start:end], start, end, without, without - uncertainty)
        for (start, end), without in zip(spans, uncertainties_without, strict=True)
    )
