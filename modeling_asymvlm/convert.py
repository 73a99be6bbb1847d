"""Makes a store of the features that clip-retrieval (`clip-retrieval inference`) left in a folder.

    python -m modeling_asymvlm.convert FOLDER STORE
    accelerate launch train_asymvlm.py --embeddings STORE

The folder holds, number by number, `img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy` and
`metadata/metadata_0.parquet` with a `caption` and an `image_path`, `key` or `url` for each row.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from .data import EmbeddingSplit, EmbeddingStore
from .readers.clip_retrieval import ClipRetrievalFeatures
from .readers.held_out import HashRange
from .readers.splits import SPLITS


# Half precision keeps eleven bits: a unit vector stored in it is a unit vector to less than this.
NORM_TOLERANCE = 5e-3


def is_normalized(features: torch.Tensor) -> bool:
    """Whether every row has unit length, as far as half precision can tell."""
    norms = torch.linalg.vector_norm(features, dim=1)
    return torch.allclose(norms, torch.ones_like(norms), rtol=0, atol=NORM_TOLERANCE)


def convert(
    folder: Path, store: Path, *, image_id_column: str | None = None, held_out_fraction: float = 0.1, seed: int = 0
) -> tuple[EmbeddingStore, int]:
    """
    Writes a store with the splits train, validation and test, which images are in by a hash of their identity.

    Args:
        folder (`Path`): what clip-retrieval wrote.
        store (`Path`): the store to write; nothing may be there yet.
        image_id_column (`str`, *optional*): as for [`ClipRetrievalFeatures`].
        held_out_fraction (`float`, *optional*, defaults to 0.1):
            Expected share of the images in each of validation and test, in (0, 0.5).
        seed (`int`, *optional*, defaults to 0): draws them.

    Returns:
        The store, and how many rows were left out for want of a caption.

    Raises:
        FileExistsError: if there is something at `store`.
        ValueError: as [`ClipRetrievalFeatures`], and if a split would have fewer than two pairs.
    """
    if store.exists():
        raise FileExistsError(f"{str(store)!r} exists already. Name a new folder for the store.")
    if not 0 < held_out_fraction < 0.5:
        raise ValueError(f"--held_out_fraction must lie between 0 and 0.5, got {held_out_fraction}.")
    features = ClipRetrievalFeatures(folder, image_id_column)
    bounds = (2 * held_out_fraction, 1.0), (0.0, held_out_fraction), (held_out_fraction, 2 * held_out_fraction)
    shares = {split: HashRange(seed, *of_split) for split, of_split in zip(SPLITS, bounds, strict=True)}
    pieces: dict[str, list[EmbeddingSplit]] = {split: [] for split in SPLITS}
    normalized = True
    for part in range(features.num_parts):
        of_part = features.read(part)
        normalized &= all(is_normalized(values[:]) for values in (of_part.image_features, of_part.text_features))
        for split, share in shares.items():
            pieces[split].append(_images_in(of_part, share))
    splits = {split: _joined(of_split) for split, of_split in pieces.items()}
    for split, joined in splits.items():
        if len(joined.captions) < 2:
            raise ValueError(
                f"The split {split} would have {len(joined.captions)} of the pairs in {str(folder)!r}, but needs at "
                "least two. Bring more, or another --held_out_fraction."
            )
    fingerprint = {"source": "clip-retrieval", "normalized": normalized}
    return EmbeddingStore.write(store, splits, fingerprint), features.num_left_out


def _images_in(split: EmbeddingSplit, share: HashRange) -> EmbeddingSplit:
    images = torch.tensor([image_id in share for image_id in split.image_ids], dtype=torch.bool)
    texts = images[split.text_image_index].nonzero().flatten()
    rows = images.nonzero().flatten()
    return EmbeddingSplit(
        image_ids=[split.image_ids[row] for row in rows.tolist()],
        image_features=split.image_features[rows],
        captions=[split.captions[row] for row in texts.tolist()],
        text_features=split.text_features[texts],
        text_image_index=(images.cumsum(0) - 1)[split.text_image_index[texts]],
    )


def _joined(pieces: list[EmbeddingSplit]) -> EmbeddingSplit:
    starts = np.cumsum([0, *(len(piece.image_ids) for piece in pieces)])
    indices = [piece.text_image_index + int(start) for piece, start in zip(pieces, starts, strict=False)]
    return EmbeddingSplit(
        image_ids=[image_id for piece in pieces for image_id in piece.image_ids],
        image_features=torch.cat([piece.image_features[:] for piece in pieces]),
        captions=[caption for piece in pieces for caption in piece.captions],
        text_features=torch.cat([piece.text_features[:] for piece in pieces]),
        text_image_index=torch.cat(indices),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 for data or arguments that are wrong."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m modeling_asymvlm.convert",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what clip-retrieval wrote")
    parser.add_argument("store", type=Path, help="the folder to write, which must not be there yet")
    parser.add_argument("--image_id_column", help="column that tells images apart; default: image_path, key or url")
    parser.add_argument("--held_out_fraction", type=float, default=0.1, help="share of validation and of test")
    parser.add_argument("--seed", type=int, default=0, help="draws the images that are held out")
    options = vars(parser.parse_args(arguments))
    try:
        store, num_left_out = convert(options.pop("folder"), options.pop("store"), **options)
    except (ValueError, OSError) as error:
        print(f"convert: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for name in SPLITS:
        split = store.split(name)
        print(f"{name}: {len(split.image_ids)} images, {len(split.captions)} captions, {split.dim} dimensions")
    if num_left_out:
        print(f"{num_left_out} rows without a caption were left out.")
    if (store.fingerprint or {}).get("normalized"):
        print("All features have unit length: give the head normalised features whenever it is used.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
