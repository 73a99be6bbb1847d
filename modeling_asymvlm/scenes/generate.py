"""Writes the scenes data set: 20,000 / 2,000 / 2,000 pictures with one caption each, as parquet files.

    python -m modeling_asymvlm.scenes.generate [--output_dir DIR]

The test split shows only combinations of attributes that the other two splits never show. The folder is complete or
absent at any moment; one that this generator has already written is left as it is.
"""

import argparse
import hashlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from .places import data_folder
from .scenes import ATTRIBUTES, all_scenes, ambiguity, draw_named, held_out_scenes, render, write_caption


SPLIT_SIZES = {"train": 20_000, "validation": 2_000, "test": 2_000}
MARKER = "scenes.json"

FEATURES = Features(
    {
        "image": ImageFeature(),
        "image_id": Value("string"),
        "caption": Value("string"),
        "ambiguity": Value("float64"),
        "num_attributes": Value("int64"),
        "named_attributes": Value("string"),
        **{name: ClassLabel(names=list(values)) for name, values in ATTRIBUTES.items()},
    }
)


def fingerprint(seed: int) -> dict:
    """What identifies a data set: the source of the generator, the seed and the sizes of the splits."""
    folder = Path(__file__).resolve().parent
    source = b"".join((folder / name).read_bytes() for name in ("scenes.py", "generate.py"))
    return {"generator_sha256": hashlib.sha256(source).hexdigest(), "seed": seed, "split_sizes": SPLIT_SIZES}


def png_bytes(picture: np.ndarray) -> bytes:
    """A uint8 picture of shape (height, width, 3) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def make_split(split: str, size: int, seed: int) -> Dataset:
    """One split as a `datasets.Dataset` with the columns of `FEATURES`.

    Args:
        split: "train", "validation" or "test"; decides the combinations of attributes and the random stream.
        size: number of pictures, each with one caption.
        seed: a non-negative integer.
    """
    random = np.random.default_rng([seed, list(SPLIT_SIZES).index(split)])
    held_out = held_out_scenes()
    allowed = all_scenes()[held_out if split == "test" else ~held_out]
    scenes = allowed[random.integers(len(allowed), size=size)]
    named = draw_named(random, size)
    columns = {
        "image": [{"bytes": png_bytes(render(scene, random)), "path": None} for scene in scenes],
        "image_id": [f"{split}-{row:05d}" for row in range(size)],
        "caption": [write_caption(scene, subset, random) for scene, subset in zip(scenes, named, strict=True)],
        "ambiguity": ambiguity(named).tolist(),
        "num_attributes": named.sum(axis=1).tolist(),
        "named_attributes": [
            " ".join(name for name, is_named in zip(ATTRIBUTES, subset, strict=True) if is_named) for subset in named
        ],
        **{name: scenes[:, column].tolist() for column, name in enumerate(ATTRIBUTES)},
    }
    return Dataset.from_dict(columns, features=FEATURES)


def is_complete(folder: Path, expected: dict) -> bool:
    """Whether `folder` holds the finished data set that `expected`, a [`fingerprint`], describes."""
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text()) == expected


def generate(output_dir: str | Path | None = None, seed: int = 0) -> Path:
    """Writes `train.parquet`, `validation.parquet` and `test.parquet` unless they are there already.

    Args:
        output_dir: the folder to create, by default that of [`data_folder`]. An older data set of this generator there
            is replaced.
        seed: a non-negative integer; the same seed gives the same pictures and captions.

    Returns:
        `output_dir` as an absolute path.

    Raises:
        FileExistsError: if `output_dir` holds anything else.
    """
    output_dir = Path(data_folder() if output_dir is None else output_dir).resolve()
    expected = fingerprint(seed)
    if is_complete(output_dir, expected):
        return output_dir
    if output_dir.exists() and not (output_dir / MARKER).is_file() and any(output_dir.iterdir()):
        raise FileExistsError(
            f"output_dir is {str(output_dir)!r}, which holds files that are not a scenes data set; "
            "name a new or an empty folder"
        )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as temporary:
        finished = Path(temporary) / "finished"
        finished.mkdir()
        for split, size in SPLIT_SIZES.items():
            make_split(split, size, seed).to_parquet(str(finished / f"{split}.parquet"))
        (finished / MARKER).write_text(json.dumps(expected, indent=2) + "\n")
        if is_complete(output_dir, expected):
            return output_dir
        if output_dir.exists():
            output_dir.rename(Path(temporary) / "replaced")
        try:
            finished.rename(output_dir)
        except OSError:
            # Another process, for instance of a distributed run, may have put the same data set there first.
            if not is_complete(output_dir, expected):
                raise
    return output_dir


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the scenes data set as parquet files.")
    parser.add_argument("--output_dir", type=Path, default=data_folder(), help="to create; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="non-negative integer, decides pictures and captions")
    arguments = parser.parse_args()
    print(generate(arguments.output_dir, arguments.seed))


if __name__ == "__main__":
    main()
