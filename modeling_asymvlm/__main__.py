"""python -m modeling_asymvlm COMMAND [ARGUMENTS]"""

import importlib
import sys

from .commands import COMMANDS


def usage() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {sentence}" for name, sentence in COMMANDS.items()]
    return "\n".join([f"usage: {__doc__}", "", *lines, "", "COMMAND --help lists the arguments of a command."])


def main(arguments: list[str]) -> int:
    """Runs the command that the first argument names; returns its exit code, or 2 where it names none."""
    command, *rest = arguments or [""]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        said = f"there is no command {command!r}" if command else "no command is named"
        print(f"modeling_asymvlm: error: {said}; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    module = importlib.import_module(f".commands.{command}", __package__)
    try:
        return module.main(rest)
    except KeyboardInterrupt:
        print(f"\n{command}: interrupted; {module.INTERRUPTED}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
