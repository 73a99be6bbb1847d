"""Where the example lies: its backbone in the package, its pictures in the user's cache."""

import os
from pathlib import Path


BACKBONE = Path(__file__).resolve().parent / "tiny_clip"
DATASET = "Scenes (generated)"
LICENSE = "apache-2.0"  # of a head that was trained on these pictures


def data_folder() -> Path:
    """Where the pictures are generated unless another folder is named: `~/.cache/asymvlm/scenes`, or below
    `$XDG_CACHE_HOME` where that is set."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "asymvlm" / "scenes"
