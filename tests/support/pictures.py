"""Folders of pictures with captions."""

import json
from pathlib import Path

from PIL import Image


def make_picture_folder(folder: Path, number_of_pictures: int) -> Path:
    """An image folder: pictures of one colour each, with two captions each that hold their number."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(number_of_pictures):
        Image.new("RGB", (32, 32), (number * 6, 0, 0)).save(folder / "images" / f"{number}.png")
        rows.append({"file_name": f"images/{number}.png", "captions": [f"red {number}", f"picture {number}"]})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder
