"""Learning rates of the rivals, by their own loss on the validation split alone: what `compare.py` uses, and others.

    python -m benchmarks.comparison.rival_settings --embeddings DIR [--factors 0.3 1 3]

Nothing of the test split is read.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from benchmarks.common import machine
from benchmarks.comparison.baselines.methods import METHODS
from benchmarks.comparison.baselines.training import Training, train
from modeling_asymvlm.reporting.tables import markdown_table
from modeling_asymvlm.store.embedding_store import EmbeddingStore


RIVALS = ("pfe", "pcmepp", "pcmepp-no-pseudo", "prolip", "probvlm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, required=True, help="folder of cached features")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.3, 1.0, 3.0], help="of the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store = EmbeddingStore(options.embeddings)
    splits = {name: store.split(name) for name in ("train", "validation")}
    rows = []
    for name in RIVALS:
        entry = METHODS[name]
        training: Training = entry.training  # type: ignore[assignment]
        for factor in options.factors:
            set_seed(options.seed)
            method = entry.build(splits["train"].dim, **entry.settings)
            tried = replace(training, learning_rate=factor * training.learning_rate)
            record = train(method, splits, tried, seed=options.seed, device="cpu")
            loss = min([record["initial_loss"], *record["validation_losses"]])
            epoch = f"{record['best_epoch']} of {len(record['validation_losses'])}"
            rows.append([entry.label, f"{tried.learning_rate:.2g}", f"{loss:.4f}", epoch])
            print(" | ".join(rows[-1]), flush=True)
    print(f"\n{machine()}\n\n{markdown_table([['method', 'learning rate', 'validation loss', 'best epoch'], *rows])}")


if __name__ == "__main__":
    main()
