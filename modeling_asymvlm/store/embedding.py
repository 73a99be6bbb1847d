"""Frozen features of images and captions, and what they depend on."""

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from ..pairs.sources import CaptionedImage, PairSource
from .embedding_store import EmbeddingSplit


# Goes up whenever this code makes other features of the same backbone and data, or lays them out otherwise.
FEATURES_VERSION = 3

BYTES_AT_A_TIME = 2**26

Item = TypeVar("Item")


def features_fingerprint(
    model: Any, processor: Any, sources: Mapping[str, PairSource], *, dtype: torch.dtype
) -> dict[str, Any]:
    """
    What cached features depend on: the version of this code, SHA-256 of the backbone's weights, of the processor's
    files and of each part of each split, and the dtype in which features are stored.
    """
    return {
        "version": FEATURES_VERSION,
        "backbone": _sha256_of_weights(model),
        "processor": _sha256_of_processor(processor),
        "dtype": str(dtype).removeprefix("torch."),
        "data": {
            name: [source.fingerprint(part) for part in range(source.num_parts)] for name, source in sources.items()
        },
    }


def _sha256_of_weights(model: Any) -> str:
    digest = hashlib.sha256(model.config.vlm_config.to_json_string().encode())
    for name, tensor in sorted(model.vlm.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for piece in tensor.contiguous().reshape(-1).view(torch.uint8).split(BYTES_AT_A_TIME):
            digest.update(piece.cpu().numpy())
    return digest.hexdigest()


def _sha256_of_processor(processor: Any) -> str:
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "tokenizer.json":  # it remembers how the last call padded, which changes no feature
                content = json.dumps({**json.loads(content), "padding": None, "truncation": None}).encode()
            digest.update(file.name.encode() + content)
    return digest.hexdigest()


@dataclass(frozen=True)
class PreparedWindow:
    """Some images with all their captions, decoded and tokenised; the texts in batches of similar length."""

    images: list[CaptionedImage]
    broken: list[str]
    image_inputs: Any
    columns: list[str]
    text_batches: list[tuple[list[int], Any]]


@torch.no_grad()
def embed(
    model: Any,
    processor: Any,
    images: Iterable[CaptionedImage],
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    skip_broken_images: bool = False,
) -> Generator[tuple[EmbeddingSplit, list[str]], None, None]:
    """
    Computes the backbone's raw features of images and their captions. The next images are decoded while the backbone
    works on the last ones.

    Args:
        model (`AsymVLMModel`): its backbone is used, on its device.
        processor (`ProcessorMixin`): the backbone's native processor.
        images (`Iterable[CaptionedImage]`): what to embed. What stands in a batch depends on these alone.
        batch_size (`int`): images or captions at a time.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of the features on return.
        skip_broken_images (`bool`, *optional*, defaults to `False`):
            Leave out images that cannot be read, with their captions, instead of raising.

    Yields:
        For every `batch_size` images their features and those of their captions, and the names of the images among
        them that were left out.

    Raises:
        ValueError: for an image that cannot be read, an empty caption, or features that are not finite in `dtype`.
    """
    windows = prepared_windows(images, processor, batch_size=batch_size, skip_broken_images=skip_broken_images)
    with closing(windows), ThreadPoolExecutor(1) as preparer:
        for window in _one_ahead(windows, preparer):
            texts = [text for image in window.images for text in image.captions]
            image_features = torch.empty(0, model.config.projection_dim, dtype=dtype)
            text_features = torch.empty(len(texts), model.config.projection_dim, dtype=dtype)
            if window.images:
                inputs = window.image_inputs.to(model.device)
                image_features = _stored(model.backbone_image_features(**inputs), "image", dtype)
            for rows, inputs in window.text_batches:
                text_features[rows] = _stored(model.backbone_text_features(**inputs.to(model.device)), "text", dtype)
            counts = [len(image.captions) for image in window.images]
            yield (
                EmbeddingSplit(
                    image_ids=[image.image_id for image in window.images],
                    image_features=image_features,
                    captions=texts,
                    text_features=text_features,
                    text_image_index=torch.arange(len(counts)).repeat_interleave(
                        torch.tensor(counts, dtype=torch.long)
                    ),
                    columns={
                        name: np.array([value for image in window.images for value in image.columns[name]])
                        for name in window.columns
                    },
                ),
                window.broken,
            )


def prepared_windows(
    images: Iterable[CaptionedImage], processor: Any, *, batch_size: int, skip_broken_images: bool = False
) -> Generator[PreparedWindow, None, None]:
    """Decodes and tokenises images and their captions, `batch_size` images at a time; as for [`embed`]."""
    remaining = iter(images)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as decoders:
        while window := list(islice(remaining, batch_size)):
            whole, decoded, broken = [], [], []
            for image, result in zip(window, decoders.map(_opened, window), strict=True):
                if isinstance(result, Image.Image):
                    whole.append(image)
                    decoded.append(result)
                elif skip_broken_images:
                    broken.append(image.name)
                else:
                    raise ValueError(f"{result} Fix it, or pass skip_broken_images=True.") from result
            for image in whole:
                if not image.captions or not all(text.strip() for text in image.captions):
                    raise ValueError(f"Image {image.name} has an empty caption, or none: fix or remove it.")
            texts = [text for image in whole for text in image.captions]
            by_length = sorted(range(len(texts)), key=lambda row, texts=texts: len(texts[row]))  # type: ignore[misc]
            batches = [by_length[start : start + batch_size] for start in range(0, len(texts), batch_size)]
            yield PreparedWindow(
                images=whole,
                broken=broken,
                columns=list(window[0].columns),
                image_inputs=processor(images=decoded, return_tensors="pt") if decoded else None,
                text_batches=[
                    (rows, processor(text=[texts[row] for row in rows], padding=True, return_tensors="pt"))
                    for rows in batches
                ],
            )


def _opened(image: CaptionedImage) -> Image.Image | ValueError:
    try:
        return image.open()
    except ValueError as error:
        return error


def _one_ahead(items: Iterator[Item], executor: Executor) -> Iterator[Item]:
    """The same items, each made in the background while the one before it is used."""
    end = object()
    waiting = executor.submit(next, items, end)
    while (item := waiting.result()) is not end:
        waiting = executor.submit(next, items, end)
        yield item  # type: ignore[misc]


def _stored(features: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    stored = features.to(dtype).cpu()
    if not torch.isfinite(stored).all():
        cause = "NaN or infinite" if not torch.isfinite(features).all() else f"too large for {dtype}"
        raise ValueError(f"The backbone gives {name} features that are {cause}. Try another dtype.")
    return stored
