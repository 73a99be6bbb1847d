"""A run of the comparison: a method trained and judged, and its record on disk."""

import hashlib
import json
import math
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from benchmarks.comparison.baselines import judging
from benchmarks.comparison.baselines.against_cosine import judge_elsewhere
from benchmarks.comparison.baselines.attempts import attempt
from benchmarks.comparison.baselines.correction import CorrectionOfScores
from benchmarks.comparison.baselines.judging import Oracle, judge
from benchmarks.comparison.baselines.methods import Entry
from benchmarks.comparison.baselines.protocol import Method
from benchmarks.comparison.baselines.training import train
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


@dataclass(frozen=True)
class Protocol:
    """
    What is the same for all methods.

    Args:
        device (`str`): where to train.
        oracle (`Oracle`, *optional*): of the test split.
        learning_rate_factors (`tuple[float, ...]`): of each method's learning rate; all are tried.
        elsewhere (`dict[str, EmbeddingSplit]`): test splits of other stores, by their names.
    """

    device: str
    oracle: Oracle | None
    learning_rate_factors: tuple[float, ...]
    elsewhere: dict[str, EmbeddingSplit] = field(default_factory=dict)


def run(entry: Entry, splits: dict[str, EmbeddingSplit], seed: int, protocol: Protocol) -> dict[str, Any]:
    """Trains a method, if there is anything to train, and judges it on the test split."""
    method, training = _trained(entry, splits, seed, protocol)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = attempt(lambda: method.fit(splits) or {})
    validation, test = (method.predict(splits[name]) for name in ("validation", "test"))
    correction = CorrectionOfScores.of(method, splits["train"])
    record = judge(validation, test, splits["validation"], splits["test"], protocol.oracle, correction)
    other = {
        name: judge_elsewhere(
            correction, validation, splits["validation"], split, record["headline"], judging.NUM_RESAMPLES
        )
        for name, split in protocol.elsewhere.items()
    }
    record["notes"] += [f"fit: {warning.message}" for warning in caught]
    return {"training": training, "fit": fit, **record, "elsewhere": other}


def _trained(
    entry: Entry, splits: dict[str, EmbeddingSplit], seed: int, protocol: Protocol
) -> tuple[Method, dict[str, Any] | None]:
    """The method with the learning rate of the lowest validation loss, its own, and how it was trained."""
    best: tuple[Method, dict[str, Any] | None] | None = None
    lowest = math.inf
    for factor in protocol.learning_rate_factors if entry.training else (1.0,):
        set_seed(seed)
        method = entry.build(splits["train"].dim, **entry.settings).to(protocol.device).eval()
        if entry.training is None:
            return method, None
        settings = replace(entry.training, learning_rate=factor * entry.training.learning_rate)
        training = train(method, splits, settings, seed=seed, device=protocol.device)
        loss = min([training["initial_loss"], *training["validation_losses"]])
        if best is None or loss < lowest:
            best, lowest = (method, {**training, "learning_rate_factor": factor}), loss
    assert best is not None
    return best


def finished(file: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a run that was made with the same settings, features and code."""
    if not file.exists():
        return None
    stored = json.loads(file.read_text(encoding="utf-8"))
    return stored["record"] if stored["fingerprint"] == json.loads(json.dumps(fingerprint)) else None


def write(file: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


def strict(value: Any) -> Any:
    """The value with null in the place of NaN, which strict JSON does not know."""
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [strict(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def digest(*folders: Path) -> str:
    """SHA-256 of the files of a store, or of the Python files of folders of code."""
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted(folder.rglob("*.py")) or sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            digest.update(str(file.relative_to(folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
