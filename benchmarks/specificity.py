"""Does 1 / kappa follow specificity, and are all pictures found that a text fits? For a trained checkpoint.

    python benchmarks/specificity.py [--model outputs/asymvlm] [--captions 500] [--hierarchies FILE] [--mask WORD]

Words of test captions are deleted, or masked, one after the other. Hierarchies are those of a file, general to
specific, or such as Scenes allows: captions of one scene that name ever more of its attributes. Where the checkpoint's
features are those of Scenes, every picture that a caption fits is a right answer, and not its own alone.
"""

import argparse
import sys
from pathlib import Path

import datasets
import numpy as np
from common import REPOSITORY, SCENES, machine, print_table
from transformers import AutoProcessor

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.data import EmbeddingStore
from modeling_asymvlm.evaluation import Hierarchies, many_to_many_metrics, read_hierarchies
from modeling_asymvlm.queries import text_queries
from modeling_asymvlm.retrieval import ImageIndex
from modeling_asymvlm.specificity import evaluate_hierarchies, evaluate_word_removal


sys.path.insert(0, str(SCENES))

from oracle import split_fits  # noqa: E402
from scenes import ATTRIBUTES, all_scenes, write_caption  # noqa: E402


def hierarchies_of_scenes(count: int, seed: int = 0) -> Hierarchies:
    """Captions of scenes, from none to all attributes named, in one random order for each scene."""
    random = np.random.default_rng(seed)
    levels = np.arange(len(ATTRIBUTES) + 1)
    captions = []
    for scene in all_scenes()[random.permutation(len(all_scenes()))[:count]]:
        place = random.permutation(len(ATTRIBUTES))
        captions += [write_caption(scene, place < level, random) for level in levels]
    return Hierarchies(captions, np.tile(levels, count), np.repeat(np.arange(count), len(levels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "outputs" / "asymvlm", help="trained checkpoint")
    parser.add_argument("--captions", type=int, default=500, help="test captions to take words from, or hierarchies")
    parser.add_argument("--hierarchies", type=Path, help="file for `read_hierarchies`, such as HierarCaps'")
    parser.add_argument("--mask", default="thing", help="put in the place of words")
    options = parser.parse_args()
    model = AsymVLMModel.from_pretrained(options.model).eval()
    processor = AutoProcessor.from_pretrained(options.model)
    test = EmbeddingStore(options.model / "embeddings").split("test")

    some = list(test.captions[: options.captions])
    rows = []
    for title, mask in (("deleted", None), (f"replaced by {options.mask!r}", options.mask)):
        metrics = evaluate_word_removal(model, processor, some, mask=mask)
        rows.append([f"words {title}", str(metrics["num_captions"]), *_shares(metrics, "rising_share")])
    if options.hierarchies is None:
        title, hierarchies = "hierarchies of Scenes", hierarchies_of_scenes(options.captions)
    else:
        title, hierarchies = options.hierarchies.name, read_hierarchies(options.hierarchies)
    metrics = evaluate_hierarchies(model, processor, hierarchies)
    rows.append([title, str(metrics["num_groups"]), *_shares(metrics, "ordered_share")])
    print(f"{machine()}\n")
    print_table(["texts", "groups", "rank correlation", "wholly ordered", "pairs ordered"], rows)

    if "ambiguity" in test.columns:
        data = datasets.Dataset.from_parquet(str(SCENES / "data" / "test.parquet"))
        fits, _ = split_fits(data, held_out=True)
        index = ImageIndex.from_split(model, test)
        found = index.search(text_queries(model, processor, list(test.captions)), len(index), posterior=False)
        of_all = many_to_many_metrics(found.rows, [np.flatnonzero(row) for row in fits])
        of_own = many_to_many_metrics(found.rows, test.text_image_index[:, None].tolist())
        columns = ("recall@1", "recall@5", "recall@10", "r_precision", "map_at_r")
        print("\nText -> image, by what counts as a right answer\n")
        print_table(
            ["right answers", *columns],
            [
                ["the own picture", *(f"{of_own[name]:.4f}" for name in columns)],
                ["every picture that the caption fits", *(f"{of_all[name]:.4f}" for name in columns)],
            ],
        )


def _shares(metrics: dict[str, float], ordered: str) -> list[str]:
    return [f"{metrics[name]:.3f}" for name in ("mean_group_spearman", ordered, "pair_accuracy")]


if __name__ == "__main__":
    main()
