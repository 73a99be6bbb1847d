"""Makes a store of the features that clip-retrieval (`clip-retrieval inference`) left in a folder.

    asymvlm convert FOLDER STORE
    asymvlm train --embeddings STORE

The folder holds, number by number, `img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy` and
`metadata/metadata_0.parquet` with a `caption` and an `image_path`, `key` or `url` for each row.
"""

from pathlib import Path

from ..pairs.splits import SPLITS
from ..store.clip_retrieval import convert
from .parser import CommandParser


def command_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser("convert", __doc__ or "")
    parser.add_argument("folder", type=Path, help="what clip-retrieval wrote")
    parser.add_argument("store", type=Path, help="the folder to write, which must not be there yet")
    parser.add_argument("--image_id_column", help="column that tells images apart; default: image_path, key or url")
    parser.add_argument("--held_out_fraction", type=float, default=0.1, help="share of validation and of test")
    parser.add_argument("--seed", type=int, default=0, help="draws the images that are held out")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns 0, and leaves with exit code 2 for data or arguments that are wrong."""
    parser = command_parser()
    options = vars(parser.parse_args(arguments))
    with parser.failing(ValueError, OSError):
        store, num_left_out = convert(options.pop("folder"), options.pop("store"), **options)
    for name in SPLITS:
        split = store.split(name)
        print(f"{name}: {len(split.image_ids)} images, {len(split.captions)} captions, {split.dim} dimensions")
    if num_left_out:
        print(f"{num_left_out} rows without a caption were left out.")
    if (store.fingerprint or {}).get("normalized"):
        print("All features have unit length: give the head normalised features whenever it is used.")
    return 0
