"""The embedded example: where it lies, its pairs and its backbone."""

import subprocess
import sys
from pathlib import Path


SCENES = Path(__file__).resolve().parents[2] / "examples" / "scenes"
BACKBONE = SCENES / "tiny_clip"
DATASET = "Scenes (generated)"
LICENSE = "apache-2.0"  # of a head that was trained on these pictures


def check_availability() -> None:
    """Raises `FileNotFoundError` where the example does not lie beside the package."""
    if not (SCENES / "generate.py").is_file():
        raise FileNotFoundError(
            "The embedded example is not here: run in a checkout of the repository, or pass your data."
        )


def scenes_data() -> str:
    """The folder of the example's pairs, which are generated where they are not there yet."""
    check_availability()
    data = SCENES / "data"
    command = [sys.executable, "-m", "examples.scenes.generate", "--output_dir", str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=SCENES.parents[1])
    return str(data)
