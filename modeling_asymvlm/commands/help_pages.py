"""Writes the help of every command as the files that `asymvlm COMMAND --help` prints.

python -m modeling_asymvlm.commands.help_pages
"""

import importlib
import os

from . import COMMANDS, HELP_PAGES


WIDTH = 100


def help_page(command: str) -> str:
    """The help of a command, in lines of at most `WIDTH` characters."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH + 2)  # argparse leaves two free
    try:
        return importlib.import_module(f".{command}", __package__).command_parser().format_help()
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


if __name__ == "__main__":
    for name in COMMANDS:
        (HELP_PAGES / f"{name}.txt").write_text(help_page(name), encoding="utf-8")
