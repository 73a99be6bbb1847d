"""Opens what the page shows: a checkpoint, the features of its pictures, and the pictures themselves."""

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import torch
from transformers import AutoProcessor

from ..calibration.calibration import Calibration
from ..model.checkpoint_fingerprints import check_fingerprint
from ..model.modeling_asymvlm import AsymVLMModel
from ..pairs.layouts import load_pairs
from ..scenes.generate import generate
from ..store.embedding_store import EmbeddingSplit, EmbeddingStore
from ..texts.processor_check import check_processor
from ..utils.checks import check_is_there
from .gallery import Gallery
from .pictures import Pictures, pictures_in_folder, pictures_of_data


SHOWN, CALIBRATION, REFERENCE = "test", "validation", "train"

DEFAULT_MODEL = Path("outputs/asymvlm")  # where `asymvlm example` leaves it


def open_gallery(
    model_name: str | None, embeddings: str | None, dataset: str | None, image_folder: str | None, *, gallery_size: int
) -> Gallery:
    """
    Args:
        model_name (`str`, *optional*):
            Checkpoint: a folder or a repository of the Hub. By default that of the embedded example, with its
            pictures.
        embeddings (`str`, *optional*):
            Store of features with the splits test and validation: a folder or a data set repository of the Hub. By
            default the folder `embeddings` in the checkpoint's.
        dataset (`str`, *optional*): the pairs that the store was made from, in any layout that training reads.
        image_folder (`str`, *optional*):
            With `dataset`, what its paths are relative to; without it, a folder of files named after the image ids.
        gallery_size (`int`): pictures at most.

    Raises:
        FileNotFoundError, OSError: for what is not there.
        ValueError: for what does not fit together, such as a calibration of another head.
    """
    if gallery_size < 2:
        raise ValueError(f"gallery_size is {gallery_size}, but a gallery needs at least 2 pictures.")
    if model_name is None:
        if not (DEFAULT_MODEL / "config.json").is_file():
            raise FileNotFoundError(
                f"There is no checkpoint at {str(DEFAULT_MODEL)!r}. Make it with `asymvlm example`, "
                "or name another with model_name=, and its features and pictures with embeddings= "
                "and dataset=."
            )
        model_name = str(DEFAULT_MODEL)
        if dataset is None and embeddings is None and image_folder is None:
            dataset = str(generate())
    model, processor = open_model(model_name)
    store = open_store(embeddings, model_name)
    check_store(store, model, model_name)
    shown, calibration = store.split(SHOWN), store.split(CALIBRATION)
    size = min(gallery_size, len(shown.image_ids), len(calibration.image_ids))
    shown, calibration = sampled(shown, size), sampled(calibration, size)
    return Gallery(
        model,
        processor,
        shown,
        calibration,
        open_pictures(dataset, image_folder, list(shown.image_ids)),
        reference=store.split(REFERENCE) if REFERENCE in store.splits else None,
        trust=open_calibration(model_name, model),
        name=Path(model_name).name,
    )


def open_model(name: str) -> tuple[AsymVLMModel, Any]:
    """A checkpoint that can embed words and pictures, and its processor."""
    check_is_there(name)
    model = AsymVLMModel.from_pretrained(name).eval()
    if model.vlm is None:
        raise ValueError(f"{name!r} is a head without a backbone, which embeds no words: name a whole checkpoint.")
    model.config.law.check_concentration(repr(name))
    processor = AutoProcessor.from_pretrained(name)
    check_processor(model, processor)
    return model, processor


def open_calibration(name: str, model: AsymVLMModel) -> Calibration | None:
    """The calibration of a checkpoint, `None` where it has none. Raises `ValueError` for that of another head."""
    try:
        return Calibration.from_pretrained(name, model=model)
    except FileNotFoundError:
        return None


def open_store(embeddings: str | None, model_name: str) -> EmbeddingStore:
    """The features of the gallery; from the Hub where there is no such folder."""
    folder = Path(model_name) / "embeddings" if embeddings is None else Path(embeddings)
    if embeddings is None and not folder.is_dir():
        raise FileNotFoundError(
            f"There are no features at {str(folder)!r}: name the store that the model was trained from with "
            "embeddings=."
        )
    if not folder.is_dir() and embeddings is not None and embeddings.count("/") == 1:
        patterns = ["images/*.parquet", "captions/*.parquet", "store.json"]
        folder = Path(huggingface_hub.snapshot_download(embeddings, repo_type="dataset", allow_patterns=patterns))
    return EmbeddingStore(folder)


def check_store(store: EmbeddingStore, model: AsymVLMModel, model_name: str) -> None:
    """Raises `ValueError` if a split is missing or the features come from another backbone than the model's."""
    missing = [split for split in (SHOWN, CALIBRATION) if split not in store.splits]
    if missing:
        raise ValueError(
            f"The store {str(store.path)!r} has no split {' and no split '.join(missing)}: pictures are those of "
            f"{SHOWN}, and sets are calibrated on {CALIBRATION}."
        )
    dim = store.split(SHOWN).dim
    if dim != model.config.projection_dim:
        raise ValueError(
            f"The features in {str(store.path)!r} are {dim} wide, but {model_name!r} takes "
            f"{model.config.projection_dim}: they come from another backbone."
        )
    if store.backbone_fingerprint is not None and model.vlm is not None:
        text_length = model.config.fixed_text_length
        check_fingerprint(store.backbone_fingerprint, model.vlm, model_name, text_length=text_length)


def open_pictures(dataset: str | None, image_folder: str | None, image_ids: list[str]) -> Pictures:
    """The pictures of these images; none where nothing says where they are, so that the page shows their ids."""
    if dataset is None and image_folder is None:
        return Pictures({})
    if dataset is None:
        found = pictures_in_folder(Path(str(image_folder)), image_ids)
    else:
        datasets.disable_progress_bars()
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # which would be told of local files too
        found = pictures_of_data(load_pairs(dataset, image_folder=image_folder), image_ids, SHOWN)
    if not len(found):
        raise ValueError(
            f"None of the {len(image_ids)} pictures of the gallery, such as {image_ids[0]!r}, is in "
            f"{str(dataset or image_folder)!r}: name the data that the features were made from."
        )
    return found


def sampled(split: EmbeddingSplit, num_images: int, seed: int = 0) -> EmbeddingSplit:
    """A split with so many of its images, drawn at random, and their captions."""
    if num_images == len(split.image_ids):
        return split
    images = np.sort(np.random.default_rng(seed).permutation(len(split.image_ids))[:num_images])
    new_row = torch.full((len(split.image_ids),), -1)
    new_row[torch.from_numpy(images)] = torch.arange(num_images)
    image_of_caption = new_row[split.text_image_index]
    captions = torch.nonzero(image_of_caption >= 0)[:, 0]
    return EmbeddingSplit(
        image_ids=[split.image_ids[int(row)] for row in images],
        image_features=split.image_features[torch.from_numpy(images)],
        captions=[split.captions[int(row)] for row in captions],
        text_features=split.text_features[captions],
        text_image_index=image_of_caption[captions],
    )
