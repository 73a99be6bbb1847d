"""The commands of the package, and the only place that knows flags: `asymvlm COMMAND`."""

from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """
    A command: a module here whose `main(arguments)` returns an exit code.

    Attributes:
        sentence (`str`): what it does.
        interrupted (`str`): what is left where Ctrl-C ends it.
    """

    sentence: str
    interrupted: str


COMMANDS = {
    "example": Command(
        "make, train and show the embedded Scenes example, offline", "--resume_from_checkpoint last goes on."
    ),
    "demo": Command("open a page on a trained model, by default on the example", "the page is closed."),
    "train": Command(
        "train a head on your pairs or features, evaluate it and save it with a model card",
        "--resume_from_checkpoint last goes on.",
    ),
    "evaluate": Command("figures of a trained model on other data", "no figures were written."),
    "search": Command("find the images of a gallery for texts", "an index is written whole or not at all."),
    "triage": Command(
        "rank captions from vague to specific, flag near-duplicates and contradictions", "no report was written."
    ),
    "convert": Command("make a store of the features that clip-retrieval computed", "no store was written."),
    "publish": Command(
        "upload a checkpoint with its code and its card to the Hub", "nothing is shown on the Hub unless all of it is."
    ),
}

# What `asymvlm COMMAND --help` prints, a file a command, so that it needs no library. `help_pages` writes them.
HELP_PAGES = Path(__file__).resolve().parent / "help"
