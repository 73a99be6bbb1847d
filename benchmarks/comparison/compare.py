"""AsymVLM, its rivals, its ablations and confidences without training, on the same cached features, in one table.

    python -m benchmarks.comparison --scenes [--seeds 0 1 2]
    python -m benchmarks.comparison --embeddings DIR [--seeds 0 1 2] [--methods cosine pfe vmf ...] [--output DIR]

DIR is a folder of cached features with train, validation and test; --scenes takes those of the embedded example, made
where they are absent. A run that is finished is not made again until its settings, the features or the code change,
and is in the tables whatever --methods names. A run that fails is reported, the others go on, and the exit code is 1.
How every method is set: docs/comparison.md.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import CLIPModel, set_seed

from benchmarks.common import REPOSITORY, machine, scenes_features
from benchmarks.comparison.baselines.judging import Oracle, judge
from benchmarks.comparison.baselines.methods import METHODS, Entry
from benchmarks.comparison.baselines.training import train
from benchmarks.comparison.plots import draw
from benchmarks.comparison.tables import (
    Runs,
    as_markdown,
    rows_against_oracle,
    rows_given_gallery,
    rows_in_short,
    rows_of_text_alone,
)
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

    state = {
        "store": _digest(store.path),
        "code": _digest(BASELINES, REPOSITORY / "modeling_asymvlm"),
        "libraries": [torch.__version__, transformers.__version__],
        "oracle": oracle is not None,
    }
    planned = [
        (method, seed)
        for method in METHODS
        for seed in (options.seeds if METHODS[method].training else options.seeds[:1])
    ]
    runs: Runs = {}
    failures = []
    with tqdm(planned, desc="runs") as progress:
        for method, seed in progress:
            progress.set_postfix_str(f"{method}, seed {seed}")
            entry = METHODS[method]
            file = options.output / "runs" / (f"{method}-{seed}.json" if entry.training else f"{method}.json")
            fingerprint = {**state, **entry.description(), "seed": seed if entry.training else None}
            try:
                record = _finished(file, fingerprint)
                if record is None and method not in options.methods:
                    continue
                if record is None:
                    record = run(entry, splits, seed, options.device, oracle)
                    _write(file, json.dumps({"fingerprint": fingerprint, "record": record}))
                runs.setdefault(method, []).append(record)
            except Exception as error:  # reported below, and by the exit code
                failures.append(f"{method}, seed {seed}: {type(error).__name__}: {error}")
                progress.write(f"{failures[-1]}\n{traceback.format_exc()}", file=sys.stderr)

    if runs:
        report(runs, splits["test"], options, len(splits["train"].captions), oracle is not None)
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def run(
    entry: Entry, splits: dict[str, EmbeddingSplit], seed: int, device: str, oracle: Oracle | None
) -> dict[str, Any]:
    """Trains a method, if there is anything to train, and judges it on the test split."""
    set_seed(seed)
    method = entry.build(splits["train"].dim, **entry.settings).to(device).eval()
    training = train(method, splits, entry.training, seed=seed, device=device) if entry.training else None
    with torch.no_grad():
        predictions = [method.predict(splits[name]) for name in ("validation", "test")]
    return {"training": training, **judge(*predictions, splits["validation"], splits["test"], oracle)}


def report(runs: Runs, test: EmbeddingSplit, options: argparse.Namespace, captions: int, has_oracle: bool) -> None:
    """Writes and prints the tables, and draws the figures."""
    runs = {method: runs[method] for method in METHODS if method in runs}
    labels = {method: METHODS[method].label for method in runs}
    tables = {
        f"In short, text → image{', expected over pairings' if has_oracle else ''}": rows_in_short(runs, labels),
        "The text alone: does its uncertainty foretell the result?": rows_of_text_alone(runs, labels),
        "Given the gallery: is this result right?": rows_given_gallery(runs, labels),
    }
    if has_oracle:
        tables["Against the oracle"] = rows_against_oracle(runs, labels)
    name = "Scenes" if options.scenes else options.embeddings.resolve().name
    about = (
        f"{name}: {captions} training captions; test {len(test.captions)} captions, {len(test.image_ids)} images; "
        f"seeds {' '.join(map(str, options.seeds))}; 10 bins; {machine()}. Mean ± standard deviation over seeds, "
        "which says nothing of the luck of the test split; for that see the [95 % by bootstrap over images] of rows "
        "with a single run"
    )
    text = "\n\n".join([about, *(f"## {title}\n\n{as_markdown(rows)}" for title, rows in tables.items())])
    _write(options.output / "comparison.md", text + "\n")
    _write(options.output / "comparison.json", json.dumps(_strict({"about": about, "tables": tables}), indent=1))
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


def _finished(file: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a run that was made with the same settings, features and code."""
    if not file.exists():
        return None
    stored = json.loads(file.read_text(encoding="utf-8"))
    return stored["record"] if stored["fingerprint"] == json.loads(json.dumps(fingerprint)) else None


def _write(file: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


def _strict(value: Any) -> Any:
    """The value with null in the place of NaN, which strict JSON does not know."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _digest(*folders: Path) -> str:
    """SHA-256 of the files of a store, or of the Python files of folders of code."""
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted(folder.rglob("*.py")) or sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            digest.update(str(file.relative_to(folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="folder of cached features")
    parser.add_argument("--scenes", action="store_true", help="the embedded example, made in --embeddings if absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
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
    if options.output is None:
        options.output = REPOSITORY / "outputs" / "comparison" / options.embeddings.resolve().name
    return options
