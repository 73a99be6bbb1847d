"""One parser for all commands: flags, or one file that holds them all, and errors of one sentence."""

import argparse
import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..utils.json_files import read_json


ARGUMENT_FILES = (".json", ".yaml", ".yml")


EVERYTHING = "all"  # after --help


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, one spelling of each flag, and the defaults that the help does not state."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = [name for name in action.option_strings if "-" not in name.removeprefix("--")]
        if not spellings:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        # What may stand alone is a switch; that `true` and `false` may follow it is said once, not at every one.
        return ", ".join(spellings) if action.nargs in (0, "?") else f"{', '.join(spellings)} {value}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type is int else "X" if action.type is float else "NAME"

    def _get_help_string(self, action: argparse.Action) -> str:
        sentence = action.help or ""
        unsaid = action.default is False or action.default in (None, argparse.SUPPRESS) or action.nargs == 0
        stated = "default" in sentence.lower() or unsaid
        return sentence if stated else f"{sentence} (default: %(default)s)"


class CommandParser(HfArgumentParser):
    """
    The parser of a command. A flag may be written with `-` for `_`. Messages of the library name arguments, as
    `image_column=`; here they name flags, `--image_column`.

    Args:
        command (`str`): its name, before every error.
        text (`str`): what the command does, and after an empty line its examples.
        dataclass_types (`Sequence[type]`, *optional*): arguments, as for `HfArgumentParser`.
        flags (`Mapping[str, str]`, *optional*): the flags of those arguments of the library that have another name.
        rare (`Collection[str]`, *optional*): arguments that `--help all` lists and `--help` does not.
    """

    def __init__(
        self,
        command: str,
        text: str,
        dataclass_types: Sequence[type] = (),
        *,
        flags: Mapping[str, str] | None = None,
        rare: Collection[str] = (),
        **kwargs: Any,
    ):
        description, _, examples = text.partition("\n\n")
        super().__init__(
            list(dataclass_types),  # type: ignore[arg-type]
            prog=f"asymvlm {command}",
            description=description,
            epilog=examples,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self.command = command
        self.flags = dict(flags or {})
        self.rare = set(rare)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in `argparse`, with `--repo-id` for `--repo_id`, and `--help all`."""
        words = [with_underscores(word) for word in args or ()]
        if ("--help", EVERYTHING) in pairwise(words):
            print(super().format_help(), end="")
            self.exit()
        return super().parse_known_args(None if args is None else words, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in `argparse`; ends the process for an argument that there is not, with the one that is most like it."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self.unknown(rest[0]))
        return parsed

    def unknown(self, word: str) -> str:
        """What to say of an argument that there is not."""
        spellings = [name for name in self._option_string_actions if "-" not in name.removeprefix("--")]
        close = difflib.get_close_matches(word.partition("=")[0], spellings, n=1)
        return f"there is no argument {word}{f'; did you mean {close[0]}?' if close else ''}"

    def hide(self, spellings: Collection[str]) -> None:
        """Leaves flags out of every help."""
        for spelling in spellings:
            self._option_string_actions[spelling].help = argparse.SUPPRESS

    def format_help(self) -> str:
        """Without what is rare, of which the last line tells."""
        rare = [action for action in self._actions if action.dest in self.rare]
        sentences = [action.help for action in rare]
        try:
            for action in rare:
                action.help = argparse.SUPPRESS
            text = super().format_help()
        finally:
            for action, sentence in zip(rare, sentences, strict=True):
                action.help = sentence
        return f"{text}\n--help {EVERYTHING} lists {len(self.rare)} more.\n" if rare else text

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2 and one sentence."""
        self.exit(2, f"{self.command}: error: {self.in_flags(message)} (--help lists all arguments)\n")

    def fail(self, error: BaseException | str, code: int = 2) -> NoReturn:
        """Ends the process with what went wrong after the arguments were found right."""
        self.exit(code, f"{self.command}: error: {self.in_flags(str(error))}\n")

    @contextmanager
    def failing(self, *kinds: type[BaseException]) -> Iterator[None]:
        """Within it, errors of these kinds end the process by [`fail`]."""
        try:
            yield
        except kinds as error:
            self.fail(error)

    def in_flags(self, message: str) -> str:
        """A message on one line, with the arguments that it names as flags of this command."""

        def flag(match: re.Match[str]) -> str:
            name = f"--{self.flags.get(match[1], match[1])}"
            known = name in self._option_string_actions
            return f"{name}{' ' if match[2] else ''}" if known else match[0]

        return re.sub(r"(?<![\w.-])([a-z][a-z_]+)=(?=([\w\"'])?)", flag, " ".join(message.split()))


def with_underscores(word: str) -> str:
    """A word of a command line, with `--repo_id` for `--repo-id`."""
    if not re.match(r"--[a-z]", word):
        return word
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def flags_in_file(file: Path) -> list[str]:
    """The flags that a JSON or YAML file stands for. Raises `ValueError` unless it maps arguments to values."""
    if file.suffix == ".json":
        values = read_json(file, remedy="Correct it.")
    else:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except RecursionError:
            raise ValueError(f"{str(file)!r} is nested too deeply to be read. Correct it.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping from argument to value.")
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            flags.append(f"--{name}")
            flags += [str(item) for item in value] if isinstance(value, list) else [_flag_value(name, value)]
    return flags


def _flag_value(name: str, value: Any) -> str:
    if value is False and name.endswith("_strategy"):
        return "no"  # which YAML reads as false
    return json.dumps(value) if isinstance(value, dict) else str(value)
