"""Whether kappa of a trained model follows the specificity of texts, and R-Precision and mAP@R of its retrieval.

    python -m benchmarks.specificity --model CHECKPOINT [--hierarchies FILE.jsonl] [--captions N] [--mask TEXT]

CHECKPOINT is the output folder of `train_asymvlm.py`, which holds the features of the data in `embeddings`. Words of N
captions of its test split are *deleted*, or *masked* by TEXT, in a random order until 3/4, 1/2 and 1/4 of them are
left: 1/kappa should rise. In *hierarchies*, a file as [HierarCaps](https://github.com/TAU-VAILab/hierarcaps) has them,
kappa should rise from general to specific; without a file they are of Scenes, where each caption names one attribute
more. For retrieval, captions of the same words are right for the images of each other; on the test split of Scenes,
where it is known which pictures each caption fits, these are right answers, too.
"""

import argparse
from pathlib import Path

import datasets
import numpy as np
from transformers import AutoProcessor, PreTrainedTokenizerBase

from benchmarks.common import print_table
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.evaluation import (
    Hierarchies,
    many_to_many_metrics,
    read_hierarchies,
    specificity_correlation,
    top_k_both_ways,
)
from modeling_asymvlm.reporting.shipped_scores import likelihood_scores
from modeling_asymvlm.reporting.specificity import evaluate_hierarchies, evaluate_word_removal
from modeling_asymvlm.scenes.oracle import split_fits
from modeling_asymvlm.scenes.places import data_folder
from modeling_asymvlm.scenes.scenes import ATTRIBUTES, all_scenes, held_out_scenes, write_caption
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


NUM_HIERARCHIES = 1000


def hierarchies_of_scenes(count: int) -> Hierarchies:
    """Captions of scenes of the test split; in a hierarchy the first names no attribute, each next one more."""
    random = np.random.default_rng(0)
    scenes = all_scenes()[held_out_scenes()]
    levels = len(ATTRIBUTES) + 1
    captions = []
    for scene in scenes[random.integers(len(scenes), size=count)]:
        place = random.permutation(len(ATTRIBUTES))
        captions += [write_caption(scene, place < level, random) for level in range(levels)]
    return Hierarchies(captions, np.tile(np.arange(levels), count), np.repeat(np.arange(count), levels))


def default_mask(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A token that stands for a word: that for masks, or for unknown words where it has no other meaning."""
    if tokenizer.mask_token is not None:
        return tokenizer.mask_token
    others = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token  # CLIP: an unknown word ends the text
    return None if tokenizer.unk_token in others else tokenizer.unk_token


def grouped(values: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """The values of each key, by ascending key."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1)


def answers_of_the_same_words(split: EmbeddingSplit) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The right images of each caption, and the right captions of each image that has any; see the module."""
    index = np.asarray(split.text_image_index)
    _, words = np.unique([" ".join(caption.split()) for caption in split.captions], return_inverse=True)
    images_of_words = [np.unique(images) for images in grouped(index, words)]
    images_of_caption = [images_of_words[number] for number in words]
    caption = np.repeat(np.arange(len(index)), [len(images) for images in images_of_caption])
    return images_of_caption, grouped(caption, np.concatenate(images_of_caption))


def answers_that_fit(split: EmbeddingSplit) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """The same of what fits each other on the test split of Scenes; None for other data, or where it is not here."""
    file = data_folder() / "test.parquet"
    if not file.is_file():
        return None
    data = datasets.Dataset.from_parquet(str(file))
    one_each = np.array_equal(split.text_image_index, np.arange(len(data)))
    if not one_each or list(split.captions) != list(data["caption"]):
        return None
    fits, _ = split_fits(data, held_out=True)
    return [np.flatnonzero(row) for row in fits], [np.flatnonzero(column) for column in fits.T]


def retrieval_rows(model: AsymVLMModel, split: EmbeddingSplit) -> list[list[str]]:
    kinds = {"captions of the same words": answers_of_the_same_words(split), "all that fit": answers_that_fit(split)}
    known = {kind: answers for kind, answers in kinds.items() if answers is not None}
    longest = max(len(right) for answers in known.values() for direction in answers for right in direction)
    top = top_k_both_ways(likelihood_scores(model, split), max(10, longest))
    with_captions = top.image_to_text[np.unique(split.text_image_index)]
    rows = []
    for kind, (images, captions) in known.items():
        for name, results, right in (
            ("text -> image", top.text_to_image, images),
            ("image -> text", with_captions, captions),
        ):
            metrics = many_to_many_metrics(results, right, ks=(1,))
            numbers = [str(metrics["num_queries"]), f"{np.mean([len(of_query) for of_query in right]):.2f}"]
            figures = [f"{metrics[key]:.4f}" for key in ("recall@1", "r_precision", "map_at_r")]
            rows.append([name, kind, *numbers, *figures])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="output folder of train_asymvlm.py")
    parser.add_argument("--hierarchies", type=Path, help=".jsonl, .json or .csv; by default of Scenes")
    parser.add_argument("--captions", type=int, default=1000, help="of the test split, to take words from")
    parser.add_argument("--mask", help="by default the tokenizer's token for a masked or an unknown word")
    arguments = parser.parse_args()
    if arguments.captions < 1:
        parser.error(f"--captions must be at least 1, got {arguments.captions}.")
    try:
        model = AsymVLMModel.from_pretrained(arguments.model).eval()
        split = EmbeddingStore(arguments.model / "embeddings").split("test")
        processor = AutoProcessor.from_pretrained(arguments.model)
        from_file = None if arguments.hierarchies is None else read_hierarchies(arguments.hierarchies)
    except (OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    if model.vlm is None or not model.config.law.has_concentration:
        parser.error(
            f"{str(arguments.model)!r} must be a probabilistic model with its backbone: it is to embed texts."
        )

    chosen = np.random.default_rng(0).permutation(len(split.captions))[: arguments.captions]
    captions = [split.captions[row] for row in chosen]
    mask = arguments.mask or default_mask(getattr(processor, "tokenizer", processor))
    ways = {"deleted": None} if mask is None else {"deleted": None, f"masked by `{mask}`": mask}
    rows = []
    for name, of_way in ways.items():
        metrics = evaluate_word_removal(model, processor, captions, mask=of_way)
        figures = [f"{metrics[key]:.3f}" for key in ("mean_group_spearman", "pair_accuracy", "rising_share")]
        rows.append([name, str(metrics["num_captions"]), *figures])
    header = [
        "words are",
        "captions",
        "rho(1/kappa, words gone)",
        "pairs in order (chance 0.5)",
        "1/kappa always rises",
    ]
    print_table(header, rows)
    if mask is None:
        print("The tokenizer has no token for a masked or an unknown word: pass --mask to mask words.")

    hierarchies = hierarchies_of_scenes(NUM_HIERARCHIES) if from_file is None else from_file
    num_words = [len(caption.split()) for caption in hierarchies.captions]
    rows = []
    for name, metrics in (
        ("kappa", evaluate_hierarchies(model, processor, hierarchies)),
        ("number of words", specificity_correlation(num_words, hierarchies.level, hierarchies.group)),
    ):
        figures = ("mean_group_spearman", "overall_spearman", "pair_accuracy", "ordered_share")
        rows.append([name, str(metrics["num_groups"]), *(f"{metrics[key]:.3f}" for key in figures)])
    print()
    header = [
        "specificity by",
        "hierarchies",
        "rho(level), mean",
        "over all captions",
        "pairs in order",
        "all in order",
    ]
    print_table(header, rows)

    print()
    header = ["retrieval", "right answers", "queries", "of each, mean", "R@1", "R-Precision", "mAP@R"]
    print_table(header, retrieval_rows(model, split))


if __name__ == "__main__":
    main()
