"""The prompts that describe the classes of a zero-shot classifier."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..utils.checks import check_strings


def check_classes(classes: Mapping[str, Any]) -> None:
    """Raises `TypeError` for what is no mapping and `ValueError` for an empty one."""
    if not isinstance(classes, Mapping):
        raise TypeError(f"Expected a mapping from each class to its prompts, got {type(classes).__name__}.")
    if not classes:
        raise ValueError("There is no class to choose from: name at least one, with its prompts.")


def prompts_of_classes(
    classes: Mapping[str, Sequence[str]] | Sequence[str], templates: Sequence[str] | None
) -> dict[str, list[str]]:
    """
    The prompts of each class: those given, or the templates with its name.

    Raises:
        TypeError: for names, prompts and templates that are no strings.
        ValueError: for repeated classes, empty prompts and templates without `{}`.
    """
    if not isinstance(classes, Mapping):
        names = _strings(classes, "Class")
        templates = ["{}"] if templates is None else _strings(templates, "Template")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"Template {template!r} has no {{}}, where the name of a class goes.")
        if len(set(names)) < len(names):
            raise ValueError(f"Class {max(names, key=names.count)!r} is named more than once: name each once.")
        classes = {name: [template.replace("{}", name) for template in templates] for name in names}
    elif templates is not None:
        raise ValueError("Templates go with names of classes; these classes have prompts of their own.")
    check_classes(classes)
    check_strings(classes, "Class")
    prompts = {name: _strings(own, f"Class {name!r}: prompt") for name, own in classes.items()}
    for name, own in prompts.items():
        if not own or not all(text.strip() for text in own):
            raise ValueError(f"Class {name!r} has an empty prompt, or none: describe it in words.")
    return prompts


def _strings(values: str | Iterable[str], name: str) -> list[str]:
    """A list of one string or of several."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} 0 is of type {type(values).__name__}: pass a string.")
    strings = [values] if isinstance(values, str) else list(values)
    check_strings(strings, name)
    return strings
