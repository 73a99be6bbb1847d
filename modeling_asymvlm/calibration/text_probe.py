"""What a text alone foretells of its retrieval, learned out of fold from the training captions' own success.

The target of a training caption is the log posterior of its own image among the reference images. A ridge regression
on the unit text features predicts it out of fold; a second one adds how the text lies in the reference corpus, its own
image and that image's captions left out of every sum. Signs are learned, so that none is taken the wrong way round.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .corpus import ReferenceCorpus
from .evidence import EvidenceCorrection, folds_of_images, log_evidence
from .regression import NUM_FOLDS, RidgeRegression, fit_ridge


FEATURES = (
    "prediction of the text features",
    "cosine to the nearest captions",
    "cosine to the nearest images",
    "entropy over the images",
    "evidence of the text",
    "cosine to the mean caption",
    "logarithm of kappa",
)
NUM_NEIGHBOURS = 10
SHARPENING = 1.5  # of the posterior whose entropy is a feature
TEXTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class CorpusView:
    """
    How texts lie in a reference corpus.

    Attributes:
        features (`torch.DoubleTensor` of shape `(texts, 6)`): `FEATURES` but for the first.
        entropy (`torch.DoubleTensor` of shape `(texts,)`): of the posterior over the reference images, in nats;
            its exponential is the number of pictures that a text fits about.
        own_log_posterior (`torch.DoubleTensor` of shape `(texts,)`): of the text's own image; empty without any.
    """

    features: torch.Tensor
    entropy: torch.Tensor
    own_log_posterior: torch.Tensor


@dataclass(frozen=True)
class TextProbe:
    """
    Attributes:
        of_features (`RidgeRegression`): on the unit text features.
        of_all (`RidgeRegression`, *optional*): on `FEATURES`; without it, the former is the prediction.
    """

    of_features: RidgeRegression
    of_all: RidgeRegression | None

    def __call__(self, text_features: torch.Tensor, view: CorpusView) -> torch.Tensor:
        """The predicted log posterior of a text's own image, in nats: float64 of shape `(texts,)`."""
        first = self.of_features(F.normalize(text_features.float(), dim=-1))
        return first if self.of_all is None else self.of_all(torch.cat([first[:, None], view.features], dim=1))


@dataclass(frozen=True)
class CorpusReader:
    """
    Compares texts with a corpus.

    Args:
        corpus (`ReferenceCorpus`): the corpus.
        law (`Any`): of the model; its `scores(text_embeds, image_embeds)` are delta.
        logit_scale (`float`): tau.
        correction (`EvidenceCorrection`): of the posterior.
    """

    corpus: ReferenceCorpus
    law: Any
    logit_scale: float
    correction: EvidenceCorrection

    def evidence(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """The evidence of images under the reference captions, float64 of shape `(images,)`."""
        scale = self.logit_scale * self.correction.sharpening
        return log_evidence(self.law.scores, scale, self.corpus.text_embeds, image_embeds)

    @torch.no_grad()
    def view(
        self, text_embeds: torch.Tensor, evidence: torch.Tensor, own_image: torch.Tensor | None = None
    ) -> CorpusView:
        """
        Args:
            text_embeds (`torch.Tensor` of shape `(texts, dim)`): natural parameters.
            evidence (`torch.Tensor` of shape `(images,)`): of the corpus's own images.
            own_image (`torch.LongTensor` of shape `(texts,)`, *optional*): the row of each text's image in the corpus,
                which is then left out of what the text is compared with.
        """
        parts = []
        for start in range(0, len(text_embeds), TEXTS_AT_A_TIME):
            rows = slice(start, start + TEXTS_AT_A_TIME)
            parts.append(self._view_of(text_embeds[rows], evidence, None if own_image is None else own_image[rows]))
        return CorpusView(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _view_of(self, eta: torch.Tensor, evidence: torch.Tensor, own: torch.Tensor | None) -> tuple:
        corpus = self.corpus
        directions, captions = F.normalize(eta, dim=-1), F.normalize(corpus.text_embeds, dim=-1)
        to_captions, to_images = directions @ captions.T, directions @ corpus.image_embeds.T
        logits = self.logit_scale * self.law.scores(eta, corpus.image_embeds)
        corrected = logits.double() - self.correction.beta * evidence
        own_log_posterior = torch.empty(0, dtype=torch.float64)
        if own is not None:
            rows = torch.arange(len(eta))
            posterior = (self.correction.sigma * corrected).log_softmax(dim=1)
            own_log_posterior = posterior[rows, own]
            to_captions = to_captions.masked_fill(own[:, None] == corpus.text_image_index, -1.0)
            for values, nothing in ((to_images, -1.0), (logits, -torch.inf), (corrected, -torch.inf)):
                values[rows, own] = nothing
        scale = self.correction.sharpening
        sharpened = (SHARPENING * scale * logits.double()).log_softmax(dim=1)
        entropy = -(sharpened.exp() * sharpened.clamp(min=-1e6)).sum(dim=1)
        mean_caption = F.normalize(captions.mean(dim=0), dim=0)
        kappa = torch.linalg.vector_norm(eta.double(), dim=-1)
        columns = [
            _mean_of_largest(to_captions),
            _mean_of_largest(to_images),
            entropy,
            (scale * corrected).logsumexp(dim=1),
            directions @ mean_caption,
            kappa.clamp(min=torch.finfo(torch.float32).tiny).log(),
        ]
        return torch.stack([column.double() for column in columns], dim=1), entropy, own_log_posterior


def fit_text_probe(reader: CorpusReader, text_features: torch.Tensor, *, seed: int = 0) -> TextProbe:
    """
    The probe of the reference captions' own success.

    Args:
        reader (`CorpusReader`): of the corpus.
        text_features (`torch.Tensor` of shape `(texts, dim)`): the backbone's features of the corpus's captions.
        seed (`int`, *optional*, defaults to 0): of the folds, which are over images.
    """
    corpus = reader.corpus
    view = reader.view(corpus.text_embeds, reader.evidence(corpus.image_embeds), corpus.text_image_index)
    folds = folds_of_images(corpus.text_image_index, NUM_FOLDS, seed)
    units = F.normalize(text_features.float(), dim=-1)
    first = fit_ridge(units, view.own_log_posterior, folds)
    both = torch.cat([first.predictions[:, None], view.features], dim=1)
    return TextProbe(first.regression, fit_ridge(both, view.own_log_posterior, folds).regression)


def _mean_of_largest(values: torch.Tensor) -> torch.Tensor:
    return values.topk(min(NUM_NEIGHBOURS, values.shape[1]), dim=1).values.mean(dim=1)
