"""The backbone's own cosine, and confidences that need no training."""

import torch
import torch.nn.functional as F

from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .protocol import TRUE_AMBIGUITY, Method, Predictions


class Cosine(Method):
    """
    Cosine of the frozen embeddings. Of a text alone it knows the number of words, of attributes named where the data
    count them, more being taken for more certain, and the length of its embedding, in either sense; and the true
    ambiguity where the data tell it.

    Args:
        logit_scale (`float`): the backbone's, of its softmax over a gallery.
    """

    def __init__(self, dim: int, logit_scale: float):
        super().__init__()
        self.logit_scale = logit_scale

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        texts, images = split.text_features[:], split.image_features[:]
        words = torch.tensor([len(caption.split()) for caption in split.captions])
        norm = torch.linalg.vector_norm(texts, dim=-1)
        uncertainty = {"caption length": -words.double(), "embedding norm": norm, "inverse embedding norm": -norm}
        if "num_attributes" in split.columns:
            uncertainty["attributes named"] = -torch.tensor(split.columns["num_attributes"]).double()
        if "ambiguity" in split.columns:
            uncertainty[TRUE_AMBIGUITY] = torch.tensor(split.columns["ambiguity"])
        image_norm = torch.linalg.vector_norm(images, dim=-1)
        return Predictions(
            scores=F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T,
            logit_scale=self.logit_scale,
            text_uncertainty=uncertainty,
            image_uncertainty={"embedding norm": image_norm, "inverse embedding norm": -image_norm},
        )
