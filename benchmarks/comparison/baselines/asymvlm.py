"""AsymVLM and its ablations: which side is a distribution, the normaliser, and what counts as a negative.

A distribution on the image side too makes the score the log of the overlap of both densities, exact for von
Mises-Fisher, with G the log-normaliser relative to the uniform law:

    ln ∫ p(z | text) p(z | image) dz - ln C_d(0) = G(kappa_t) + G(kappa_i) - G(‖kappa_t mu_t + kappa_i mu_i‖)

It is the mutual likelihood score on the sphere, and the log-likelihood of the image point in the limit of
kappa_i -> infinity: AsymVLM is the special case of a certain image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.log_normalizers import vmf_log_normalizer
from modeling_asymvlm.model.objective import Likelihood
from modeling_asymvlm.model.text_head import ProbabilisticTextHead
from modeling_asymvlm.store.embedding_store import EmbeddingSplit

from .own_calibration import OwnCalibration
from .protocol import Method, Predictions, by_blocks, matching_pairs


BLOCK_SIZE = 256


def log_overlap(text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
    """
    Log of the overlap of von Mises-Fisher densities of natural parameters `(texts, dim)` and `(images, dim)`, relative
    to that with the uniform law, in nats: `(texts, images)`.
    """
    dim = text_embeds.shape[1]
    text, image = (torch.linalg.vector_norm(embeds, dim=-1) for embeds in (text_embeds, image_embeds))
    square = text.square()[:, None] + image.square() + 2 * text_embeds @ image_embeds.T
    # Never below the difference of the lengths, which is 0 only for opposite parameters; rounding may go below.
    floor = (text[:, None] - image).square() + torch.finfo(square.dtype).tiny
    total = torch.maximum(square, floor).sqrt()
    return vmf_log_normalizer(text, dim)[:, None] + vmf_log_normalizer(image, dim) - vmf_log_normalizer(total, dim)


def contrastive_loss(logits: torch.Tensor, image_ids: torch.Tensor | None) -> torch.Tensor:
    """The unified objective from logits `(batch, batch)`; other captions of an image leave the denominators."""
    if image_ids is not None:
        same = matching_pairs(image_ids) & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same, float("-inf"))
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class AsymVLM(Method):
    """
    Args:
        dim (`int`): width of the features.
        sides (`tuple[str, ...]`, *optional*): which modalities are distributions; both for `"vmf"` alone.
        normalizer (`str`, *optional*): `"exact"`, `"paper"`, or `"none"` to leave G out.
        mask_same_image (`bool`, *optional*): whether other captions of an image are spared as negatives.
        calibrated (`bool`, *optional*, defaults to `False`): whether the package's calibration says what it is worth.
        config: further arguments of `AsymVLMConfig`.
    """

    def __init__(
        self,
        dim: int,
        sides: tuple[str, ...] = ("text",),
        normalizer: str = "exact",
        mask_same_image: bool = True,
        calibrated: bool = False,
        **config: Any,
    ):
        super().__init__()
        self.distribution, self.normalizer, self.mask_same_image = config["distribution"], normalizer, mask_same_image
        if len(sides) > 1 and (self.distribution, normalizer) != ("vmf", "exact"):
            raise ValueError(f"Two sides need distribution 'vmf' and normalizer 'exact', got {config} {normalizer!r}.")
        head_config = AsymVLMConfig(projection_dim=dim, **config)
        self.heads = nn.ModuleDict({side: ProbabilisticTextHead(head_config) for side in sides})
        self.config, self.calibrated = head_config, calibrated
        self.calibration: OwnCalibration | None = None

    def fit(self, splits: dict[str, EmbeddingSplit]) -> None:
        if self.calibrated:
            model = AsymVLMModel(self.config)
            model.text_head.load_state_dict(self.heads["text"].state_dict())
            self.calibration = OwnCalibration(model.eval(), splits)

    @property
    def logit_scale(self) -> torch.Tensor:
        """The learned temperature tau."""
        return next(iter(self.heads.values())).logit_scale

    def encode(self, side: str, features: torch.Tensor) -> torch.Tensor:
        """Natural parameters eta of a side that is a distribution, features as they are of one that is not."""
        return self.heads[side](features) if side in self.heads else features

    def scores(self, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Scores `(texts, images)` of encoded texts and images."""
        if len(self.heads) > 1:
            return log_overlap(texts, images)
        if "image" in self.heads:
            return self._log_likelihood(images, texts).T
        return self._log_likelihood(texts, images)

    def _log_likelihood(self, embeds: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        law = Likelihood(self.distribution, "exact" if self.normalizer == "none" else self.normalizer)
        scores = law.scores(embeds, points)
        if self.normalizer == "none":
            concentration = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True)
            scores = scores - law.log_normalizer(concentration, embeds.shape[1])
        return scores

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        texts, images = self.encode("text", batch["text_features"]), self.encode("image", batch["image_features"])
        ids = batch["image_ids"] if self.mask_same_image else None
        return contrastive_loss(self.logit_scale * self.scores(texts, images), ids)

    @torch.no_grad()
    def predict(self, split: EmbeddingSplit) -> Predictions:
        texts = self.encode("text", split.text_features[:].to(self._device()))
        images = self.encode("image", split.image_features[:].to(self._device()))
        concentration = {
            side: torch.linalg.vector_norm(embeds, dim=-1).cpu()
            for side, embeds in (("text", texts), ("image", images))
            if side in self.heads
        }
        uncertainty = {side: {"1/kappa": 1 / kappa} for side, kappa in concentration.items()}
        if self.calibration is not None:
            uncertainty["text"] |= self.calibration.of_texts(split.text_features[:])
        return Predictions(
            scores=by_blocks(lambda block: self.scores(block, images), (texts,), BLOCK_SIZE),
            logit_scale=self.logit_scale.item(),
            text_uncertainty=uncertainty.get("text", {}),
            image_uncertainty=uncertainty.get("image", {}),
            concentration=concentration.get("text"),
        )
