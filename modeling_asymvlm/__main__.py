"""asymvlm COMMAND [ARGUMENTS], or python -m modeling_asymvlm COMMAND [ARGUMENTS]

exit codes: 0 done; 1 the Hub cannot be reached or refuses; 2 arguments, data or a model are wrong, or an extra is
missing; 130 interrupted.
"""

import difflib
import importlib
import sys

from ._version import __version__
from .commands import COMMANDS, HELP_PAGES
from .utils.extras import EXTRAS, missing_extra


def usage() -> str:
    """The commands, a line each, and the exit codes."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.sentence}" for name, command in COMMANDS.items()]
    return "\n".join([f"usage: {first}", "", *lines, "", "COMMAND --help tells the arguments of a command.", "", rest])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the first argument names, those of the process by default; returns its exit code."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        return _say(f"asymvlm: error: {_no_command(command)}", 2)
    if rest in (["-h"], ["--help"]):
        print((HELP_PAGES / f"{command}.txt").read_text(encoding="utf-8"), end="")
        return 0
    try:
        importlib.import_module(".quiet", f"{__package__}.commands").be_quiet()
        importlib.import_module(".registration", __package__)
        return importlib.import_module(f".commands.{command}", __package__).main(rest)
    except KeyboardInterrupt:
        return _say(f"\n{command}: interrupted; {COMMANDS[command].interrupted}", 130)
    except ImportError as error:
        if error.name not in EXTRAS:
            raise
        return _say(f"{command}: error: {missing_extra(f'`asymvlm {command}`', error.name)}", 2)


def _no_command(command: str) -> str:
    if not command:
        return f"no command is named; choose one of {', '.join(COMMANDS)}."
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    advice = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}."
    return f"there is no command {command!r}; {advice}"


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
