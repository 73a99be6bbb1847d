"""Scores with ties, and the ranks that sorting every row and column gives."""

import numpy as np

from modeling_asymvlm.evaluation import RetrievalRanks


def random_case(seed, num_texts=47, num_images=13, distinct=5):
    """Scores of few distinct values, hence many ties; unequal captions an image, some images without any."""
    generator = np.random.default_rng(seed)
    index = generator.integers(0, num_images - 2, size=num_texts)
    scores = generator.integers(0, distinct, size=(num_texts, num_images)) / 4
    return scores, index


def best_first(scores):
    return sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate))


def brute_force_ranks(scores, index):
    num_texts, num_images = scores.shape
    by_text = [best_first(list(scores[text])) for text in range(num_texts)]
    text_rank = [by_text[text].index(index[text]) for text in range(num_texts)]
    queries = [image for image in range(num_images) if image in set(index.tolist())]
    by_image = {image: best_first(list(scores[:, image])) for image in queries}
    image_rank = [min(by_image[image].index(text) for text in np.flatnonzero(index == image)) for image in queries]
    return RetrievalRanks(
        text_to_image_rank=np.array(text_rank),
        text_to_image_top=np.array([order[0] for order in by_text]),
        image_queries=np.array(queries),
        image_to_text_rank=np.array(image_rank),
        image_to_text_top=np.array([by_image[image][0] for image in queries]),
        num_images_without_captions=num_images - len(queries),
    )
