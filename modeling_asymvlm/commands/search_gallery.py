"""What is searched: a split of a store, or the pictures in a folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..calibration.calibration import Calibration
from ..model.checkpoint_fingerprints import check_fingerprint, head_fingerprint
from ..model.modeling_asymvlm import AsymVLMModel
from ..pairs.sources import CaptionedImage
from ..search.image_index import ImageIndex
from ..store.embedding_store import EmbeddingStore


def calibration_of(checkpoint: str, model: AsymVLMModel) -> Calibration | None:
    """The calibration of a checkpoint, `None` where it has none. Raises `ValueError` for that of another head."""
    try:
        return Calibration.from_pretrained(checkpoint, model=model)
    except FileNotFoundError:
        return None


def split_index(
    model: AsymVLMModel, embeddings: str | Path, split: str, *, calibration: Calibration | None
) -> ImageIndex:
    """
    The images of a split of a store.

    Raises:
        ValueError: for a store without that split, or of another backbone than the model's.
        FileNotFoundError: if there is no store.
    """
    store = EmbeddingStore(embeddings)
    if split not in store.splits:
        raise ValueError(f"The store {str(embeddings)!r} has no split {split!r}, but {', '.join(store.splits)}.")
    images = store.split(split)
    if images.dim != model.config.projection_dim:
        raise ValueError(
            f"The features in {str(embeddings)!r} are {images.dim} wide, but the model takes "
            f"{model.config.projection_dim}: they come from another backbone."
        )
    if store.backbone_fingerprint is not None and model.vlm is not None:
        text_length = model.config.fixed_text_length
        check_fingerprint(store.backbone_fingerprint, model.vlm, str(embeddings), text_length=text_length)
    return ImageIndex.from_split(model, images, calibration=calibration)


@torch.no_grad()
def folder_index(
    model: AsymVLMModel, processor: Any, folder: Path, *, calibration: Calibration | None, batch_size: int
) -> ImageIndex:
    """
    The pictures in a folder at any depth, by their paths in it, in the order of these.

    Args:
        model (`AsymVLMModel`): with its backbone, in evaluation mode, on any device.
        processor (`ProcessorMixin`): of its backbone.
        folder (`Path`): files that Pillow has a decoder for, by their suffix; others are left alone.
        calibration (`Calibration`, *optional*): of the model's head.
        batch_size (`int`): pictures in the backbone at a time.

    Raises:
        ValueError: for a folder without pictures, and for a picture that cannot be read.
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of pictures at {str(folder)!r}.")
    suffixes = Image.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise ValueError(f"There is no picture in {str(folder)!r}, such as a .jpg or a .png file.")
    index = ImageIndex(
        model.config.projection_dim,
        **asdict(model.config.law),
        logit_scale=model.logit_scale.item(),
        calibration=calibration,
    )
    index.model_fingerprint = head_fingerprint(model)
    with tqdm(total=len(files), desc="Embedding", unit=" pictures", disable=None) as bar:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            pictures = [CaptionedImage(file.name, file, ()).open() for file in batch]
            inputs = processor(images=pictures, return_tensors="pt").to(model.device)
            vectors = model.get_image_features(**inputs).pooler_output
            index.add(vectors, [file.relative_to(folder).as_posix() for file in batch])
            bar.update(len(batch))
    return index
