"""Frozen features of images and captions: computed once, cached, and used again only where nothing has changed."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .data import EmbeddingSplit, EmbeddingStore
from .sources import PairSource


def cached_features(
    folder: Path,
    model: Any,
    processor: Any,
    sources: Mapping[str, PairSource],
    *,
    batch_size: int,
    skip_broken_images: bool = False,
) -> tuple[EmbeddingStore, list[str]]:
    """
    The features of every split, from the store at `folder` if it was made from the same backbone, processor and data,
    and else computed and stored there.

    Args:
        folder (`Path`): where the store is or will be.
        model, processor, batch_size, skip_broken_images: as for [`embed_pairs`].
        sources (`Mapping`): the pairs of each split.

    Returns:
        The store, and the names of the images that were left out.

    Raises:
        ValueError: as [`embed_pairs`].
    """
    fingerprint = features_fingerprint(model, processor, sources)
    if folder.is_dir():
        store = EmbeddingStore(folder)
        stored = store.fingerprint or {}
        broken = stored.pop("broken_images", [])
        if stored == fingerprint and (skip_broken_images or not broken):
            return store, broken
    splits, broken = {}, []
    for name, of_split in sources.items():
        splits[name], broken_in_split = embed_pairs(
            model,
            processor,
            of_split,
            batch_size=batch_size,
            skip_broken_images=skip_broken_images,
            description=f"Features of {name}",
        )
        broken += broken_in_split
    return EmbeddingStore.write(folder, splits, {**fingerprint, "broken_images": broken}), broken


def features_fingerprint(model: Any, processor: Any, sources: Mapping[str, PairSource]) -> dict[str, Any]:
    """
    What cached features depend on: SHA-256 of the backbone's weights, of the processor's files, and of each split's
    captions and images (their bytes, or their files' size and time of change).
    """
    backbone = hashlib.sha256(model.config.vlm_config.to_json_string().encode())
    for name, tensor in sorted(model.vlm.state_dict().items()):
        backbone.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        backbone.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    files = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "tokenizer.json":  # it remembers how the last call padded, which changes no feature
                content = json.dumps({**json.loads(content), "padding": None, "truncation": None}).encode()
            files.update(file.name.encode() + content)
    return {
        "backbone": backbone.hexdigest(),
        "processor": files.hexdigest(),
        "data": {
            name: [of_split.fingerprint(part) for part in range(of_split.num_parts)]
            for name, of_split in sources.items()
        },
    }


@torch.no_grad()
def embed_pairs(
    model: Any,
    processor: Any,
    source: PairSource,
    *,
    batch_size: int,
    skip_broken_images: bool = False,
    description: str = "",
) -> tuple[EmbeddingSplit, list[str]]:
    """
    Computes the backbone's raw features of all images and captions.

    Args:
        model (`AsymVLMModel`): its backbone is used, on its device.
        processor (`ProcessorMixin`): the backbone's native processor.
        source (`PairSource`): what to embed.
        batch_size (`int`): images or captions at a time.
        skip_broken_images (`bool`, *optional*, defaults to `False`):
            Leave out images that cannot be read, with their captions, instead of raising.
        description (`str`, *optional*): name shown by the progress bar.

    Returns:
        The features in float32, and the names of the images that were left out.

    Raises:
        ValueError: for an image that cannot be read, or features that are not finite.
    """
    image_ids: list[str] = []
    captions: list[str] = []
    text_image_index: list[int] = []
    columns: dict[str, list] = {}
    broken: list[str] = []
    image_features = []
    with tqdm(desc=description, unit=" items") as progress:
        all_images = (image for part in range(source.num_parts) for image in source.read(part))
        while batch := list(islice(all_images, batch_size)):
            images = []
            for item in batch:
                try:
                    images.append(item.open())
                except ValueError as error:
                    if not skip_broken_images:
                        raise ValueError(f"{error} Mend it, or pass --skip_broken_images.") from error
                    broken.append(item.name)
                    continue
                captions += item.captions
                text_image_index += [len(image_ids)] * len(item.captions)
                image_ids.append(item.image_id)
                for name, values in item.columns.items():
                    columns.setdefault(name, []).extend(values)
            if images:
                inputs = processor(images=images, return_tensors="pt").to(model.device)
                image_features.append(model.backbone_image_features(**inputs).float().cpu())
            progress.update(len(batch))
        if len(captions) < 2:
            raise ValueError(f"Only {len(captions)} pairs are left after skipping {len(broken)} broken images.")
        text_features = []
        for texts in _batches(captions, batch_size):
            inputs = processor(text=list(texts), padding=True, return_tensors="pt").to(model.device)
            text_features.append(model.backbone_text_features(**inputs).float().cpu())
            progress.update(len(texts))
    split = EmbeddingSplit(
        image_ids=image_ids,
        image_features=torch.cat(image_features),
        captions=captions,
        text_features=torch.cat(text_features),
        text_image_index=torch.tensor(text_image_index),
        columns={name: np.asarray(values) for name, values in columns.items()},
    )
    for part, features in (("image", split.image_features), ("text", split.text_features)):
        if not torch.isfinite(features).all():
            raise ValueError(f"The backbone gives {part} features that are NaN or infinite. Try another dtype.")
    return split, broken


def _batches(items: Sequence[Any], batch_size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]
