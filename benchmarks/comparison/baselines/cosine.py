"""The backbone's own cosine, and confidences that need no training."""

import torch
import torch.nn.functional as F

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.evaluation import EmbeddingScores, fit_logit_scale
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .nnn import mean_of_nearest, units
from .own_calibration import OwnCalibration
from .protocol import TRUE_AMBIGUITY, Method, Predictions


NUM_NEIGHBOURS = 10


class Cosine(Method):
    """
    Cosine of the frozen embeddings. Of a text alone it knows the number of words, of attributes named where the data
    count them, more being taken for more certain, and the length of its embedding, in either sense; and the true
    ambiguity where the data tell it. Once fitted, also how common the text is, which is taken for less certain: its
    conformity, the cosine to the mean training caption (Levi and Gilboa, "The Double-Ellipsoid Geometry of CLIP", ICML
    2025), and its mean cosine to the ten nearest training captions; and the confidence of the package's calibration.

    Args:
        logit_scale (`float`): the backbone's, of its softmax over a gallery.
    """

    def __init__(self, dim: int, logit_scale: float):
        super().__init__()
        self.logit_scale = logit_scale
        self.captions: torch.Tensor | None = None
        self.calibration: OwnCalibration | None = None

    def fit(self, splits: dict[str, EmbeddingSplit]) -> None:
        self.captions = units(splits["train"].text_features)
        validation = splits["validation"]
        features = (F.normalize(each[:], dim=-1) for each in (validation.text_features, validation.image_features))
        scale = fit_logit_scale(EmbeddingScores(*features), validation.text_image_index)
        config = AsymVLMConfig(distribution="deterministic", projection_dim=validation.dim, logit_scale_init=scale)
        self.calibration = OwnCalibration(AsymVLMModel(config).eval(), splits)

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        texts, images = split.text_features[:], split.image_features[:]
        unit_texts = F.normalize(texts, dim=-1)
        words = torch.tensor([len(caption.split()) for caption in split.captions])
        norm = torch.linalg.vector_norm(texts, dim=-1)
        uncertainty = {"caption length": -words.double(), "embedding norm": norm, "inverse embedding norm": -norm}
        if self.captions is not None:
            uncertainty["conformity"] = unit_texts @ F.normalize(self.captions.mean(dim=0), dim=0)
            uncertainty["10-NN density"] = mean_of_nearest(unit_texts, self.captions, NUM_NEIGHBOURS)
        if self.calibration is not None:
            uncertainty |= self.calibration.of_texts(texts)
        if "num_attributes" in split.columns:
            uncertainty["attributes named"] = -torch.tensor(split.columns["num_attributes"]).double()
        if "ambiguity" in split.columns:
            uncertainty[TRUE_AMBIGUITY] = torch.tensor(split.columns["ambiguity"])
        image_norm = torch.linalg.vector_norm(images, dim=-1)
        return Predictions(
            scores=unit_texts @ F.normalize(images, dim=-1).T,
            logit_scale=self.logit_scale,
            text_uncertainty=uncertainty,
            image_uncertainty={"embedding norm": image_norm, "inverse embedding norm": -image_norm},
        )
