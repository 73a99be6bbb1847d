"""What becomes of damaged files: every kind of file that the package writes, harmed at random and read again.

    python -m benchmarks.faults [--mutations 150 --seed 0 --kinds index classifier store ...]

A mutation flips one to three bits, cuts a file short, deletes it, fills a stretch with zeros, or puts in its place
that of another artefact of the same kind and sizes. A reader in a process of its own, forked for each mutation, reads
the artefact and gives what it found; `same` counts answers that did not change, such as those of a note that was
ignored or of white space, `refused` errors that name a place, `nameless` other errors, `silent` answers that changed,
and `killed` processes that died.
"""

import argparse
import multiprocessing
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import machine, print_table
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel, Calibration, EmbeddingStore, ImageIndex, TextIndex
from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.resumable_state import load_random_state
from modeling_asymvlm.training.run_record import read_run
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from modeling_asymvlm.zero_shot.classifier import ZeroShotClassifier


DIM = 8
SECONDS = 60.0
OUTCOMES = ("same", "refused", "nameless", "silent", "killed")


class Kind(NamedTuple):
    """How an artefact is written, for a seed, into a folder that is not there, and what reading it tells."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], Any]


def split_of(seed: int, images: int = 40) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, DIM, generator=generator)
    index = torch.arange(2 * images) % images
    texts = features[index] + torch.randn(2 * images, DIM, generator=generator)
    ids = [f"{seed}-{row:03d}" for row in range(images)]
    return EmbeddingSplit(ids, features, [f"{seed} {row:03d}" for row in range(2 * images)], texts, index)


def model_of(seed: int) -> AsymVLMModel:
    torch.manual_seed(seed)
    return AsymVLMModel(AsymVLMConfig(projection_dim=DIM, hidden_size=16, mean_direction="learned")).eval()


def tensors_of(module: torch.nn.Module) -> list[list[float]]:
    return [tensor.reshape(-1).tolist() for _, tensor in sorted(module.state_dict().items())]


def read_store(path: Path) -> Any:
    split = EmbeddingStore(path).split("test")
    features = (split.image_features[:].tolist(), split.text_features[:].tolist())
    return list(split.image_ids), list(split.captions), features, split.text_image_index.tolist()


def read_index(kind: Any, *, memory_map: bool) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        found = kind.load(path, memory_map=memory_map).search(torch.eye(DIM), 10)
        return found.labels, found.scores.tolist()

    return read


def write_classifier(path: Path, seed: int) -> None:
    features = split_of(seed).text_features
    ZeroShotClassifier({"a": features[:3], "b": features[3:5]}, distribution="vmf").save(path)


def read_calibration(path: Path) -> Any:
    calibration = Calibration.from_pretrained(path)
    report = calibration.text_report(split_of(99).text_features)
    return (
        report.fits_about.tolist(),
        report.typicality.tolist(),
        str(calibration.measured),
        str(calibration.correction),
    )


def write_training(path: Path, seed: int) -> None:
    trainer = AsymVLMTrainer(
        model=model_of(seed),
        args=AsymVLMTrainingArguments(
            output_dir=str(path.with_name(f"{path.name}.run")), max_steps=2, report_to="none", disable_tqdm=True,
            save_strategy="steps", save_steps=2, eval_strategy="no", load_best_model_at_end=False, eval_on_start=False,
            per_device_train_batch_size=16, early_stopping_patience=None,
        ),
        train_dataset=FeaturePairs(split_of(seed)),
        eval_dataset=FeaturePairs(split_of(seed + 50)),
        data_collator=FeaturePairs.collate,
    )  # fmt: skip
    trainer.train()
    shutil.move(path.with_name(f"{path.name}.run") / "checkpoint-2", path)


def read_training(path: Path) -> Any:
    record = read_run(path)
    load_random_state(path / "random_state_0.safetensors")
    return record["run"], record["seconds"], tensors_of(AsymVLMModel.from_pretrained(path)), torch.rand(3).tolist()


KINDS = {
    "store": Kind(lambda path, seed: EmbeddingStore.write(path, {"test": split_of(seed)}, {"seed": seed}), read_store),
    "text index": Kind(
        lambda path, seed: TextIndex.from_split(model_of(seed), split_of(seed)).save(path),
        read_index(TextIndex, memory_map=False),
    ),
    "mapped index": Kind(
        lambda path, seed: ImageIndex.from_split(model_of(seed), split_of(seed)).save(path),
        read_index(ImageIndex, memory_map=True),
    ),
    "classifier": Kind(write_classifier, lambda path: ZeroShotClassifier.load(path)(image_features=torch.eye(DIM))),
    "calibration": Kind(
        lambda path, seed: Calibration.fit(model_of(seed), split_of(seed), split_of(seed + 20)).save_pretrained(path),
        read_calibration,
    ),
    "checkpoint": Kind(
        lambda path, seed: model_of(seed).save_pretrained(path),
        lambda path: tensors_of(AsymVLMModel.from_pretrained(path)),
    ),
    "training": Kind(write_training, read_training),
}
# Those of transformers and of the tokenizer, which the package neither writes nor reads itself.
NOT_OURS = ("config.json",)
# Sound weights of the same shapes may have been put there on purpose; within training, `run.json` knows them.
MAY_BE_EXCHANGED = ("checkpoint", "model.safetensors")


def harm(file: Path, other: Path | None, generator: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    way = generator.choice(["flip", "flip", "flip", "cut", "zeros", "delete", *(["swap"] if other else [])])
    if way == "flip":
        for position in generator.integers(len(content), size=generator.integers(1, 4)):
            content[position] ^= 1 << int(generator.integers(8))
    elif way == "cut":
        del content[generator.integers(len(content)) :]
    elif way == "zeros":
        start = int(generator.integers(len(content)))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif way == "swap" and other is not None:
        content = bytearray(other.read_bytes())
    file.unlink()
    if way != "delete":
        file.write_bytes(content)


def outcome_of(read: Callable[[Path], Any], path: Path, expected: str) -> str:
    """Reads in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            sender.send("same" if repr(read(path)) == expected else "silent")
        except Exception as error:
            names = str(path) in str(error) or any(file.name in str(error) for file in path.rglob("*"))
            sender.send("refused" if names else "nameless")

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        outcome = receiver.recv() if receiver.poll(SECONDS) else "killed"
    except EOFError:
        outcome = "killed"
    process.kill()
    process.join()
    return outcome


def corruptions(artefact: str, mutations: int, seed: int) -> dict[str, Counter[str]]:
    """By name of the file, how often each outcome came of `mutations` of it in an artefact of `KINDS`."""
    kind = KINDS[artefact]
    generator = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        whole, other, harmed = (Path(temporary, name) for name in ("whole", "other", "harmed"))
        kind.write(whole, seed)
        kind.write(other, seed + 1)
        expected = repr(kind.read(whole))
        names = sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file())
        for name in names:
            if name in NOT_OURS or not (other / name).is_file():
                continue
            counts[name] = Counter()
            for _ in range(mutations):
                shutil.rmtree(harmed, ignore_errors=True)
                shutil.copytree(whole, harmed)
                exchanged = None if (artefact, name) == MAY_BE_EXCHANGED else other / name
                harm(harmed / name, exchanged, generator)
                counts[name][outcome_of(kind.read, harmed, expected)] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads do not survive a fork
    rows = []
    for name in options.kinds:
        for file, counts in corruptions(name, options.mutations, options.seed).items():
            rows.append([name, file, *(str(counts[outcome]) for outcome in OUTCOMES)])
    print(f"{machine()}, {options.mutations} mutations of each file")
    print_table(["artefact", "file", *OUTCOMES], rows)


if __name__ == "__main__":
    main()
