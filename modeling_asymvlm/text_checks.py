"""What is refused in texts that people type, before a model sees them."""

from collections.abc import Iterable, Sequence
from typing import Any


def check_strings(values: Iterable[Any], name: str) -> None:
    """Raises `TypeError` for what is no string, with the name of the values and the number of the first such one."""
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name} {number} is of type {type(value).__name__}: pass a string.")


def check_texts(texts: Sequence[str], processor: Any, context: int | None, *, kind: str = "text") -> None:
    """
    Refuses texts that say nothing, and texts of which a backbone would cut off the end.

    Args:
        texts (`Sequence[str]`): what was typed.
        processor (`ProcessorMixin` or `PreTrainedTokenizerBase`): of the backbone.
        context (`int`, *optional*): tokens that the backbone takes at most, `config.text_max_length`.
        kind (`str`, *optional*, defaults to `"text"`): what the messages call a text.

    Raises:
        TypeError: for what is no string.
        ValueError: for a text of white space alone, and for one that is longer than the context.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    check_strings(texts, kind.capitalize())
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{kind.capitalize()} {number} is empty: write something in words.")
        if context is not None and (length := len(tokenizer(text)["input_ids"])) > context:
            raise ValueError(
                f"The {kind} {text[:40]!r}... has {length} tokens, but the context of the backbone is {context}: "
                "shorten it."
            )
