"""Making a calibration: everything is chosen and measured on validation pairs, which the head was not trained on."""

from typing import Any

import torch
import torch.nn.functional as F

from ..evaluation import auroc_difference_interval, selective_metrics
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.modeling_asymvlm import AsymVLMModel
from ..model.objective import pair_scores
from .calibration_files import HEAD_FIELDS
from .confidences import CalibratedConfidence, MeasuredConfidence, posterior_log_odds
from .corpus import ReferenceCorpus, text_embeds_of
from .evidence import MAX_QUERIES, EvidenceCorrection, folds_of_images, log_evidence
from .presence import Presence, presence_trials
from .reference import UncertaintyReference
from .regression import NUM_FOLDS, LogisticRegression, fit_ridge
from .text_probe import CorpusReader, TextProbe, fit_text_probe
from .typicality import Typicality


MIN_HELD_OUT = 20
MAX_GALLERY = 8192

# A probe that compares texts with the training pairs takes new texts to lie among them as held-out ones do. It must
# earn that: by this much AUROC, and by more than chance, on held-out captions.
LEAST_GAIN = 0.02
NUM_RESAMPLES = 200


class HeldOut:
    """
    Validation captions under a head, with the gallery of all their images.

    Args:
        model (`AsymVLMModel`): in evaluation mode.
        split (`EmbeddingSplit`): the pairs; at most 8,192 images and 4,096 captions of them are drawn.
        seed (`int`): draws them.

    Raises:
        ValueError: for fewer than 20 captions or images.
    """

    def __init__(self, model: AsymVLMModel, split: Any, seed: int):
        index = torch.as_tensor(split.text_image_index)
        images = index.unique()
        generator = torch.Generator().manual_seed(seed)
        images = images[torch.randperm(len(images), generator=generator)[:MAX_GALLERY]].sort().values
        position = torch.full((int(index.max()) + 1,) if len(index) else (1,), -1)
        position[images] = torch.arange(len(images))
        candidates = (position[index] >= 0).nonzero().flatten()
        rows = candidates[torch.randperm(len(candidates), generator=generator)[:MAX_QUERIES]].sort().values
        if min(len(rows), len(images)) < MIN_HELD_OUT:
            raise ValueError(
                f"The validation split has {len(rows)} captions of {len(images)} images, but a calibration needs at "
                f"least {MIN_HELD_OUT} of both: hold out more."
            )
        self.index = position[index[rows]]
        self.text_features = split.text_features[rows]
        self.text_embeds = text_embeds_of(model, split.text_features, rows)
        self.image_embeds = F.normalize(split.image_features[images].float(), dim=-1)
        self.folds = folds_of_images(self.index, NUM_FOLDS, seed)


@torch.no_grad()
def fit_parts(model: AsymVLMModel, train: Any, validation: Any, *, corpus: str, seed: int) -> dict[str, Any]:
    """The parts of a calibration, as its constructor takes them; arguments and errors of [`Calibration.fit`]."""
    for name, split in (("train", train), ("validation", validation)):
        if split.dim != model.config.projection_dim:
            raise ValueError(
                f"The features of {name} are {split.dim} wide, but the model takes {model.config.projection_dim}: "
                "they come from another backbone."
            )
    law, tau = model.config.law, model.logit_scale.item()
    reference, rows = ReferenceCorpus.sample(model, train, seed=seed)
    held_out = HeldOut(model, validation, seed)
    logits = tau * law.scores(held_out.text_embeds, held_out.image_embeds)
    correction, evidence = EvidenceCorrection.fit_at_own_temperature(
        logits,
        lambda scale: log_evidence(law.scores, scale * tau, reference.text_embeds, held_out.image_embeds),
        held_out.index,
        seed=seed,
    )
    corrected = correction.apply(logits, evidence)
    correct = corrected.argmax(dim=1) == held_out.index
    top = corrected.log_softmax(dim=1).amax(dim=1)
    gallery_size = len(held_out.image_embeds)

    def calibrated(score: torch.Tensor, is_log_odds: bool = False) -> CalibratedConfidence:
        folds, images = held_out.folds, held_out.index
        return CalibratedConfidence.fit(score, correct, images, folds, gallery_size, is_log_odds=is_log_odds)

    text_features = train.text_features[rows].float()
    cosines = pair_scores(held_out.text_features.float(), held_out.image_embeds, distribution="deterministic")
    backbone_scale = EvidenceCorrection.fit_scale(cosines, held_out.index)
    reader = CorpusReader(reference, law, tau, correction)
    probe, prediction = _chosen_probe(
        reader,
        _cosine_reader(reference, text_features, backbone_scale, cosines, held_out, seed),
        text_features,
        held_out,
        correct,
        seed,
    )
    present, of_presence = _presence(reference, held_out, seed)
    kappa = torch.linalg.vector_norm(held_out.text_embeds, dim=-1)
    return dict(
        model=_head_alone(model),
        corpus=reference,
        correction=correction,
        typical=Typicality.fit(text_features, held_out.text_features),
        text_probe=probe,
        of_text=calibrated(prediction),
        of_result=calibrated(posterior_log_odds(top), is_log_odds=True),
        present=present,
        of_presence=of_presence,
        reference=UncertaintyReference.from_concentration(kappa, model, corpus=corpus or "the validation captions")
        if law.has_concentration
        else None,
        concentration=calibrated(kappa).measured if law.has_concentration else None,
        backbone_scale=backbone_scale,
        gallery_size=gallery_size,
    )


def _head_alone(model: AsymVLMModel) -> AsymVLMModel:
    copy = AsymVLMModel(AsymVLMConfig(**{name: getattr(model.config, name) for name in HEAD_FIELDS}))
    copy.text_head.load_state_dict({name: each.cpu() for name, each in model.text_head.state_dict().items()})
    return copy.eval()


def _chosen_probe(
    reader: CorpusReader,
    of_backbone: CorpusReader,
    text_features: torch.Tensor,
    held_out: HeldOut,
    correct: torch.Tensor,
    seed: int,
) -> tuple[TextProbe, torch.Tensor]:
    """
    The probe of the text features alone, or of all features where held-out captions prove these better; and its
    prediction for the held-out captions.

    The former learns from the success of the backbone's own direction: on its training captions, the head's is
    flattered.
    """
    of_features = fit_text_probe(of_backbone, text_features, seed=seed)
    simple = TextProbe(of_features.of_features, None)
    full = fit_text_probe(reader, text_features, seed=seed)
    view = reader.view(held_out.text_embeds, reader.evidence(reader.corpus.image_embeds))
    of_simple, of_full = simple(held_out.text_features, view), full(held_out.text_features, view)
    if correct.all() or not correct.any():
        return simple, of_simple

    hits, predictions = correct.numpy(), (of_full.numpy(), of_simple.numpy())
    low, _ = auroc_difference_interval(
        predictions, (hits, hits), clusters=held_out.index.numpy(), num_resamples=NUM_RESAMPLES, seed=seed
    )
    of_both = [selective_metrics(-prediction, hits)["auroc"] for prediction in predictions]
    return (full, of_full) if low > 0 and of_both[0] - of_both[1] > LEAST_GAIN else (simple, of_simple)


def _cosine_reader(
    corpus: ReferenceCorpus,
    text_features: torch.Tensor,
    scale: float,
    cosines: torch.Tensor,
    held_out: HeldOut,
    seed: int,
) -> CorpusReader:
    """Reads the corpus by the backbone's cosine with a fitted scale and an evidence correction of its own."""
    plain = ReferenceCorpus(F.normalize(text_features, dim=-1), corpus.image_embeds, corpus.text_image_index)
    law = AsymVLMConfig(distribution="deterministic").law
    evidence = log_evidence(law.scores, scale, plain.text_embeds, held_out.image_embeds)
    correction = EvidenceCorrection.fit(scale * cosines, evidence, held_out.index, seed=seed)
    return CorpusReader(plain, law, scale, correction)


def _presence(corpus: ReferenceCorpus, held_out: HeldOut, seed: int) -> tuple[Presence, MeasuredConfidence]:
    directions = F.normalize(corpus.text_embeds, dim=-1)
    own = (directions * corpus.image_embeds[corpus.text_image_index]).sum(dim=-1)
    own_cosine = fit_ridge(directions, own, folds_of_images(corpus.text_image_index, NUM_FOLDS, seed)).regression
    trials = presence_trials(held_out.text_embeds, held_out.image_embeds, held_out.index, own_cosine, seed=seed)
    regression = LogisticRegression.fit(trials.features, trials.present)
    probability = LogisticRegression.out_of_fold(trials.features, trials.present, held_out.folds[trials.caption])
    measured = MeasuredConfidence.of(
        probability, probability, trials.present, held_out.index[trials.caption], len(held_out.image_embeds)
    )
    return Presence(own_cosine, regression), measured
