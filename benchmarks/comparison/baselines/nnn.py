"""NNN: Nearest Neighbor Normalization (Chowdhury et al., EMNLP 2024), of the backbone's cosine, without training.

From the cosine of an image comes off alpha times its mean cosine to the k nearest training captions: an image that
many texts like is worth less. Likewise from that of a text, by the training images. What comes off a text does not
change its order of images, nor what comes off an image its order of texts: one score serves both directions.
"""

from itertools import product

import torch
import torch.nn.functional as F

from modeling_asymvlm.evaluation import rank_both_ways
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .protocol import Method, Predictions


NEIGHBOURS = (1, 4, 16, 64, 128)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_REFERENCES = 8192


def mean_of_nearest(points: torch.Tensor, references: torch.Tensor, number: int) -> torch.Tensor:
    """Mean cosine of unit vectors `(points, dim)` to the nearest of some references, at most all: `(points,)`."""
    number = min(number, len(references))
    return torch.cat([(block @ references.T).topk(number, dim=1).values.mean(dim=1) for block in points.split(1024)])


def units(features: torch.Tensor) -> torch.Tensor:
    """Unit vectors of a seeded sample of at most 8,192 rows."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MAX_REFERENCES]
    return F.normalize(features[order.sort().values].float(), dim=-1)


class NearestNeighborNormalization(Method):
    """
    Of the settings, those of the highest R@1 on the validation split are taken, each direction by itself; of equal
    ones the smallest weight.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.references: dict[str, torch.Tensor] = {}  # by the side that they correct
        self.settings = {"text_to_image": (1, 0.0), "image_to_text": (1, 0.0)}

    def fit(self, splits: dict[str, EmbeddingSplit]) -> None:
        train, validation = splits["train"], splits["validation"]
        self.references = {
            "image": units(train.text_features),
            "text": units(train.image_features),
        }
        recall: dict[str, dict[tuple[int, float], float]] = {direction: {} for direction in self.settings}
        for weight, number in product(WEIGHTS, NEIGHBOURS):
            setting = number, weight
            scores = self._scores(validation, dict.fromkeys(self.settings, setting))
            ranks = rank_both_ways(scores, validation.text_image_index)
            recall["text_to_image"][setting] = float((ranks.text_to_image_rank == 0).mean())
            recall["image_to_text"][setting] = float((ranks.image_to_text_rank == 0).mean())
        self.settings = {direction: max(found, key=found.__getitem__) for direction, found in recall.items()}

    def _scores(self, split: EmbeddingSplit, settings: dict[str, tuple[int, float]]) -> torch.Tensor:
        texts, images = (F.normalize(each[:].float(), dim=-1) for each in (split.text_features, split.image_features))
        (of_image, image_weight), (of_text, text_weight) = settings["text_to_image"], settings["image_to_text"]
        scores = texts @ images.T
        if not self.references:
            return scores
        scores -= image_weight * mean_of_nearest(images, self.references["image"], of_image)
        return scores - text_weight * mean_of_nearest(texts, self.references["text"], of_text)[:, None]

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        uncertainty = {}
        if self.references:
            texts = F.normalize(split.text_features[:].float(), dim=-1)
            nearest = mean_of_nearest(texts, self.references["text"], self.settings["image_to_text"][0])
            uncertainty["distance of the nearest training images"] = -nearest
        return Predictions(scores=self._scores(split, self.settings), text_uncertainty=uncertainty)
