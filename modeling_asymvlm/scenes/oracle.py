"""The best possible R@1 on a split of the scenes data set, computed from the attributes.

    python -m modeling_asymvlm.scenes.oracle DIR

Assumption: pictures are independent and uniform over the scenes that the split may show, each caption is written for
one picture, and the gallery holds all pictures or all captions in random order. A retrieval method sees one query and
the gallery of the other modality.

- text->image. Which attributes a caption names, and in which words, does not depend on the scene, so all n pictures of
  the gallery that the caption fits are equally likely to be its own: no choice is right with probability above 1 / n.
- image->text. Given the picture, the gallery holds its own caption and N - 1 captions of independent other pictures.
  With f(t) the share of scenes that caption t fits, and m(t) the probability of naming these attributes in these
  words, p(t | picture) = m(t) [t fits] and p(t) = m(t) f(t). So the posterior probability that caption j is the
  picture's own is proportional to p(t_j | picture) / p(t_j) = [t_j fits] / f(t_j), normalised over the gallery. m(t)
  cancels: identical captions and paraphrases tie, and no choice among them can do better.

Both are exact. In both directions a best choice is the highest score ln(p(t | picture) / p(t)) = -ln f(t) if t fits
and -infinity otherwise, the pointwise mutual information, so the bound is reached by scoring each pair by itself. A
method that matches all pictures to all captions jointly could use that no two pictures share a caption, and is not
bounded.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset

from .scenes import ATTRIBUTES, all_scenes, held_out_scenes


# Stands in for the logarithm of zero, so that the score matrix is finite.
IMPOSSIBLE = -1000.0


def fit_matrix(scenes: np.ndarray, captioned_scenes: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Which captions fit which scenes.

    Args:
        scenes: int array of shape (num_scenes, num_attributes).
        captioned_scenes: int array of shape (num_captions, num_attributes), the scene that each caption was written
            for; only named attributes matter.
        named: boolean array of shape (num_captions, num_attributes).

    Returns:
        A boolean array of shape (num_captions, num_scenes).
    """
    fits = np.ones((len(captioned_scenes), len(scenes)), dtype=bool)
    for attribute in range(scenes.shape[1]):
        same = captioned_scenes[:, attribute, None] == scenes[None, :, attribute]
        fits &= same | ~named[:, attribute, None]
    return fits


def text_to_image_posterior(fits: np.ndarray) -> np.ndarray:
    """Probability of each picture to be the one that each caption was written for.

    Args:
        fits: boolean array of shape (num_captions, num_images) in which each caption fits at least its own picture.

    Returns:
        A float64 array of shape (num_captions, num_images); rows sum to one and their maxima bound R@1.
    """
    return fits / fits.sum(axis=1, keepdims=True)


def image_to_text_posterior(fits: np.ndarray, scene_share: np.ndarray) -> np.ndarray:
    """Probability of each caption to be the one that was written for each picture.

    Args:
        fits: boolean array of shape (num_captions, num_images) in which each picture has at least its own caption.
        scene_share: float array of shape (num_captions,) in (0, 1], the share of scenes that each caption fits.

    Returns:
        A float64 array of shape (num_captions, num_images); columns sum to one and their maxima bound R@1.
    """
    weights = fits / scene_share[:, None]
    return weights / weights.sum(axis=0)


def best_recall(fits: np.ndarray, scene_share: np.ndarray) -> tuple[float, float]:
    """The highest expected R@1, text->image and image->text; arguments as for [`image_to_text_posterior`]."""
    text_to_image = text_to_image_posterior(fits).max(axis=1).mean()
    image_to_text = image_to_text_posterior(fits, scene_share).max(axis=0).mean()
    return float(text_to_image), float(image_to_text)


def expected_recall(scores: np.ndarray, fits: np.ndarray, scene_share: np.ndarray) -> tuple[float, float]:
    """R@1 of `scores`, text->image and image->text, averaged over the pairings that captions and pictures allow.

    Plain R@1 on 2,000 queries varies by about 0.01 with the luck of which picture a caption was written for; this
    expectation does not, and never exceeds [`best_recall`].

    Args:
        scores: float array of shape (num_images, num_captions).
        fits, scene_share: as for [`image_to_text_posterior`].
    """
    images, captions = scores.argmax(axis=0), scores.argmax(axis=1)
    text_to_image = text_to_image_posterior(fits)[np.arange(scores.shape[1]), images].mean()
    image_to_text = image_to_text_posterior(fits, scene_share)[captions, np.arange(scores.shape[0])].mean()
    return float(text_to_image), float(image_to_text)


def oracle_scores(fits: np.ndarray, scene_share: np.ndarray, seed: int = 0) -> np.ndarray:
    """Scores whose highest entry is a best choice in both directions: -ln(scene_share) where the caption fits.

    Args:
        fits, scene_share: as for [`image_to_text_posterior`].
        seed: ties are broken at random, by less than any two different scores are apart.

    Returns:
        A float64 array of shape (num_images, num_captions); `IMPOSSIBLE` where the caption does not fit.
    """
    scores = np.where(fits, -np.log(scene_share)[:, None], IMPOSSIBLE).T
    gaps = np.diff(np.unique(scores))
    tie_break = 1e-3 * min(gaps.min(initial=1.0), 1.0)
    return scores + tie_break * np.random.default_rng(seed).random(scores.shape)


def split_attributes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The scenes, int of shape (rows, 5), and the named attributes, boolean of shape (rows, 5), of a split."""
    table = dataset.select_columns([*ATTRIBUTES, "named_attributes"]).with_format("numpy")[:]
    scenes = np.stack([table[name] for name in ATTRIBUTES], axis=1)
    subsets = [subset.split() for subset in table["named_attributes"]]
    named = np.array([[name in subset for name in ATTRIBUTES] for subset in subsets], dtype=bool)
    return scenes, named


def split_fits(dataset: Dataset, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """`fits` and `scene_share`, as for [`image_to_text_posterior`], of a split with one caption for each picture.

    Args:
        dataset: a split of the scenes data set.
        held_out: whether the split shows the held-out combinations (the test split) or the others.
    """
    scenes, named = split_attributes(dataset)
    world = all_scenes()[held_out_scenes() == held_out]
    return fit_matrix(scenes, scenes, named), fit_matrix(world, scenes, named).mean(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the best possible R@1 on a split of the scenes data set.")
    parser.add_argument("data_dir", type=Path, help="folder that generate.py has written")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    arguments = parser.parse_args()
    file = arguments.data_dir / f"{arguments.split}.parquet"
    dataset = load_dataset("parquet", data_files={arguments.split: str(file)}, split=arguments.split)
    fits, scene_share = split_fits(dataset, held_out=arguments.split == "test")
    text_to_image, image_to_text = best_recall(fits, scene_share)
    print(f"text->image R@1 {text_to_image:.4f}")
    print(f"image->text R@1 {image_to_text:.4f}")


if __name__ == "__main__":
    main()
