"""A source of pairs for tests: pictures of one colour made on the spot, in parts."""

import hashlib
import io
from collections.abc import Iterator

import torch
from PIL import Image

from modeling_asymvlm.pairs.sources import CaptionedImage
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 6 % 256, number % 7, 0)).save(content, "PNG")
    return content.getvalue()


class PictureSource:
    """`num_parts` parts of pictures with two captions each; those numbered in `broken` cannot be decoded."""

    def __init__(self, num_parts: int = 3, images_per_part: int = 5, broken: tuple[int, ...] = (), first: int = 0):
        self.num_parts, self.images_per_part, self.broken, self.first = num_parts, images_per_part, broken, first
        self.num_images = num_parts * images_per_part
        self.num_captions = 2 * self.num_images
        self.versions = ["first"] * num_parts

    def numbers(self, part: int) -> range:
        start = self.first + part * self.images_per_part
        return range(start, start + self.images_per_part)

    def fingerprint(self, part: int) -> str:
        content = f"{self.numbers(part)} {self.broken} {self.versions[part]}"
        return hashlib.sha256(content.encode()).hexdigest()

    def read(self, part: int) -> Iterator[CaptionedImage]:
        for number in self.numbers(part):
            content = b"no picture" if number in self.broken else png(number)
            captions = [f"red {number}", f"picture red {number}"]
            yield CaptionedImage(f"image-{number}", content, captions, {"level": [0, 1]})


class CountingEmbed:
    """Features made of the numbers in the ids, in place of a backbone; remembers the images that it was given."""

    def __init__(self, dim: int = 4, fail_at: str | None = None):
        self.dim, self.fail_at = dim, fail_at
        self.seen: list[str] = []

    def __call__(self, images):
        for image in images:
            if image.image_id == self.fail_at:
                raise KeyboardInterrupt
            self.seen.append(image.image_id)
            number = float(image.image_id.rpartition("-")[2])
            text_features = torch.stack(
                [torch.full((self.dim,), number + row / 4) for row in range(len(image.captions))]
            )
            columns = {name: torch.tensor(values).numpy() for name, values in image.columns.items()}
            yield (
                EmbeddingSplit(
                    image_ids=[image.image_id],
                    image_features=torch.full((1, self.dim), number),
                    captions=list(image.captions),
                    text_features=text_features,
                    text_image_index=torch.zeros(len(image.captions), dtype=torch.long),
                    columns=columns,
                ),
                [],
            )
