"""AsymVLM, its rivals, its ablations and confidences without training, on the same cached features, in one table.

    python -m benchmarks.comparison --scenes [--seeds 0 1 2]
    python -m benchmarks.comparison --embeddings DIR [--seeds 0 1 2] [--methods cosine pfe vmf ...] [--output DIR]
                                    [--halves] [--learning_rate_factors 0.3 1 3] [--judge_on DIR ...]

DIR is a folder of cached features with train, validation and test, of a few hundred pairs or more; --scenes takes
those of the embedded example, made where they are absent. With --halves every seed parts all images of the folder
anew, one half to train and choose on and one to test. A run that is finished is not made again until its settings,
the features or the code change, and is in the tables whatever --methods names. A run that fails is reported, the
others go on, and the exit code is 1; a figure that the data do not allow is named in its cell. How every method is
set: docs/comparison.md.
"""

import argparse
import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import CLIPModel

from benchmarks.common import REPOSITORY, machine, scenes_features
from benchmarks.comparison.baselines.judging import Oracle
from benchmarks.comparison.baselines.methods import METHODS
from benchmarks.comparison.plots import draw
from benchmarks.comparison.remarks import remarks
from benchmarks.comparison.runs import Protocol, digest, finished, run, strict, write
from benchmarks.comparison.tables import (
    Runs,
    as_markdown,
    rows_against_cosine,
    rows_against_oracle,
    rows_elsewhere,
    rows_given_gallery,
    rows_in_short,
    rows_of_text_alone,
)
from benchmarks.trust.heads import halves
from modeling_asymvlm.pairs.layouts import SPLITS
from modeling_asymvlm.scenes.places import BACKBONE, data_folder
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


BASELINES = Path(__file__).resolve().parent / "baselines"

# The largest scale that CLIP was allowed to learn, which most of its checkpoints reach.
CLIP_LOGIT_SCALE = 100.0


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    oracle, backbone_logit_scale = None, options.backbone_logit_scale
    if options.scenes:
        oracle, own_scale = _scenes(options.embeddings)
        backbone_logit_scale = own_scale if backbone_logit_scale is None else backbone_logit_scale
    if backbone_logit_scale is None:
        backbone_logit_scale = CLIP_LOGIT_SCALE
    store = EmbeddingStore(options.embeddings)
    splits = {name: store.split(name) for name in SPLITS}
    if options.scenes:
        splits = {name: _with_attributes(name, split) for name, split in splits.items()}
    METHODS["cosine"].settings["logit_scale"] = backbone_logit_scale
    elsewhere = {folder.resolve().name: EmbeddingStore(folder).split("test") for folder in options.judge_on}
    protocol = Protocol(options.device, oracle, tuple(options.learning_rate_factors), elsewhere)

    state = {
        "store": digest(store.path),
        "code": digest(BASELINES, REPOSITORY / "modeling_asymvlm"),
        "libraries": [torch.__version__, transformers.__version__],
        "oracle": oracle is not None,
        "halves": options.halves,
        "factors": options.learning_rate_factors,
        "elsewhere": [digest(folder) for folder in options.judge_on],
    }
    planned = [
        (method, seed)
        for method in METHODS
        for seed in (options.seeds if METHODS[method].training or options.halves else options.seeds[:1])
    ]
    runs: Runs = {}
    failures = []
    parted = {seed: halves(splits, seed) for seed in options.seeds} if options.halves else {}
    with tqdm(planned, desc="runs") as progress:
        for method, seed in progress:
            progress.set_postfix_str(f"{method}, seed {seed}")
            entry = METHODS[method]
            has_seed = options.halves or entry.training is not None
            file = options.output / "runs" / (f"{method}-{seed}.json" if has_seed else f"{method}.json")
            fingerprint = {**state, **entry.description(), "seed": seed if has_seed else None}
            try:
                record = finished(file, fingerprint)
                if record is None and method not in options.methods:
                    continue
                if record is None:
                    record = run(entry, parted.get(seed, splits), seed, protocol)
                    write(file, json.dumps({"fingerprint": fingerprint, "record": record}))
                runs.setdefault(method, []).append(record)
            except Exception as error:  # reported below, and by the exit code
                failures.append(f"{method}, seed {seed}: {type(error).__name__}: {error}")
                progress.write(f"{failures[-1]}\n{traceback.format_exc()}", file=sys.stderr)

    if runs:
        report(runs, parted.get(options.seeds[0], splits), options, oracle is not None)
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def report(runs: Runs, splits: dict[str, EmbeddingSplit], options: argparse.Namespace, has_oracle: bool) -> None:
    """Writes and prints the tables, and draws the figures."""
    runs = {method: runs[method] for method in METHODS if method in runs}
    labels = {method: METHODS[method].label for method in runs}
    tables = {
        f"In short, text → image{', expected over pairings' if has_oracle else ''}": rows_in_short(runs, labels),
        "Against the backbone's cosine, and with the evidence correction": rows_against_cosine(runs, labels),
        "The text alone: does its uncertainty foretell the result?": rows_of_text_alone(runs, labels),
        "Given the gallery: is this result right?": rows_given_gallery(runs, labels),
    }
    if has_oracle:
        tables["Against the oracle"] = rows_against_oracle(runs, labels)
    name = "Scenes" if options.scenes else options.embeddings.resolve().name
    tables |= {
        f"Trained on {name}, judged on {other.resolve().name}": rows_elsewhere(runs, labels, other.resolve().name)
        for other in options.judge_on
    }
    test, captions = splits["test"], len(splits["train"].captions)
    about = (
        f"{name}: {captions} training captions; test {len(test.captions)} captions, {len(test.image_ids)} images; "
        f"{'random halves' if options.halves else 'seeds'} {' '.join(map(str, options.seeds))}; 10 bins; {machine()}. "
        f"Mean ± standard deviation over {'halves' if options.halves else 'seeds'}, "
        "which says nothing of the luck of the test split; for that see the [95 % by bootstrap over images] of rows "
        "with a single run. Differences to the cosine: mean, and in brackets the means of the ends of the paired "
        "intervals"
    )
    sections = [about, *(f"## {title}\n\n{as_markdown(rows)}" for title, rows in tables.items())]
    said = remarks(runs, labels)
    if said:
        sections.append("## Remarks\n\n" + "\n".join(f"- {each}" for each in said))
    text = "\n\n".join(sections)
    write(options.output / "comparison.md", text + "\n")
    content = {"about": about, "tables": tables, "remarks": said}
    write(options.output / "comparison.json", json.dumps(strict(content), indent=1))
    shown = {method: records for method, records in runs.items() if METHODS[method].drawn}
    if shown:
        draw(shown, labels, test.columns, options.output, name)
    print(text)
    print(f"\nTables and figures are in {options.output}")


def _scenes(cache: Path) -> tuple[Oracle, float]:
    """Makes the features of the embedded example where absent; its oracle and the backbone's scale."""
    from modeling_asymvlm.scenes.oracle import image_to_text_posterior, split_fits, text_to_image_posterior

    cache.parent.mkdir(parents=True, exist_ok=True)
    _, test_data = scenes_features(cache)
    fits, scene_share = split_fits(test_data, held_out=True)
    scale = CLIPModel.from_pretrained(BACKBONE).logit_scale.exp().item()
    return (text_to_image_posterior(fits), image_to_text_posterior(fits, scene_share)), scale


def _with_attributes(name: str, split: EmbeddingSplit) -> EmbeddingSplit:
    """The split with the number of attributes that each caption names."""
    from modeling_asymvlm.scenes.oracle import split_attributes

    data = Dataset.from_parquet(str(data_folder() / f"{name}.parquet"))
    _, named = split_attributes(data)
    return replace(split, columns={**split.columns, "num_attributes": named.sum(axis=1)})


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="folder of cached features")
    parser.add_argument("--scenes", action="store_true", help="the embedded example, made in --embeddings if absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--halves", action="store_true", help="part all images anew for each seed, for small stores")
    parser.add_argument(
        "--learning_rate_factors",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="FACTOR",
        help="of each method's learning rate; the one of lowest validation loss, its own, is kept",
    )
    parser.add_argument(
        "--judge_on", type=Path, nargs="+", default=[], metavar="DIR", help="other folders, whose test split is read"
    )
    parser.add_argument("--output", type=Path, help="default: outputs/comparison/NAME")
    parser.add_argument("--device", default="cpu", help="where to train, such as cuda")
    parser.add_argument(
        "--backbone_logit_scale",
        type=float,
        help=f"scale of the backbone's softmax; a store does not tell it. Default: {CLIP_LOGIT_SCALE:g}, CLIP's, or "
        "that of the tiny CLIP with --scenes",
    )
    options = parser.parse_args(arguments)
    if options.embeddings is None:
        if not options.scenes:
            parser.error("give --embeddings DIR, or --scenes")
        options.embeddings = REPOSITORY / "outputs" / "scenes-embeddings"
    if options.scenes and options.halves:
        parser.error("--halves is for stores: the oracle of --scenes knows its test split alone")
    if options.output is None:
        name = options.embeddings.resolve().name + ("-halves" if options.halves else "")
        options.output = REPOSITORY / "outputs" / "comparison" / name
    return options
