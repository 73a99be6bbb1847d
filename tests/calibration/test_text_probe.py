"""How texts lie in a corpus, their own pair left out, against loops; and a probe that learns which texts fail."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats

from modeling_asymvlm import AsymVLMConfig
from modeling_asymvlm.calibration.corpus import ReferenceCorpus, text_embeds_of
from modeling_asymvlm.calibration.evidence import EvidenceCorrection
from modeling_asymvlm.calibration.text_probe import FEATURES, CorpusReader, TextProbe, fit_text_probe
from tests.support.planted_pairs import planted_split, untrained_head


CORRECTION = EvidenceCorrection(0.8, 0.6)


def reader_of(distribution: str) -> tuple[CorpusReader, torch.Tensor]:
    """A reader of 90 captions of 30 images, and the features of the captions."""
    model, split = untrained_head(distribution), planted_split(0, 30, 90)
    corpus, rows = ReferenceCorpus.sample(model, split)
    reader = CorpusReader(corpus, model.config.law, model.logit_scale.item(), CORRECTION)
    return reader, split.text_features[rows]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def brute_force_view(reader: CorpusReader, eta: torch.Tensor, own: int | None):
    """Six features, and the own log posterior, of one text."""
    corpus, tau = reader.corpus, reader.logit_scale
    captions, images = corpus.text_embeds.double().numpy(), corpus.image_embeds.double()
    logits = tau * reader.law.scores(eta[None].double(), images).numpy()[0]
    evidence = special.logsumexp(tau * reader.law.scores(corpus.text_embeds.double(), images).numpy(), axis=0)
    corrected = logits - CORRECTION.beta * (evidence - np.log(len(captions)))
    direction = unit(eta.double().numpy())
    to_captions, to_images = unit(captions) @ direction, images.numpy() @ direction
    own_log_posterior = None
    if own is not None:
        own_log_posterior = special.log_softmax(CORRECTION.sigma * corrected)[own]
        to_captions = to_captions[corpus.text_image_index.numpy() != own]
        to_images, logits, corrected = (np.delete(each, own) for each in (to_images, logits, corrected))
    features = [
        np.sort(to_captions)[-10:].mean(),
        np.sort(to_images)[-10:].mean(),
        special.entr(special.softmax(1.5 * logits)).sum(),
        special.logsumexp(corrected),
        direction @ unit(unit(captions).mean(axis=0)),
        np.log(np.linalg.norm(eta.double().numpy())),
    ]
    return features, own_log_posterior


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_reference_captions_are_compared_with_all_but_their_own_pair(distribution):
    reader, _ = reader_of(distribution)
    corpus = reader.corpus
    view = reader.view(corpus.text_embeds, reader.evidence(corpus.image_embeds), corpus.text_image_index)
    assert view.features.shape == (90, len(FEATURES) - 1)
    for text in range(0, 90, 7):
        features, own = brute_force_view(reader, corpus.text_embeds[text], corpus.text_image_index[text].item())
        np.testing.assert_allclose(view.features[text], features, rtol=1e-3, atol=1e-4)
        assert view.own_log_posterior[text].item() == pytest.approx(own, abs=1e-3)
        assert view.entropy[text] == view.features[text, 2]


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_new_texts_are_compared_with_the_whole_corpus(distribution, monkeypatch):
    reader, _ = reader_of(distribution)
    texts = text_embeds_of(untrained_head(distribution), planted_split(1, 20, 20).text_features)
    evidence = reader.evidence(reader.corpus.image_embeds)
    view = reader.view(texts, evidence)
    assert view.own_log_posterior.shape == (0,)
    for text in range(20):
        features, _ = brute_force_view(reader, texts[text], None)
        np.testing.assert_allclose(view.features[text], features, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("modeling_asymvlm.calibration.text_probe.TEXTS_AT_A_TIME", 7)
    np.testing.assert_allclose(reader.view(texts, evidence).features, view.features, rtol=1e-4, atol=1e-5)


def test_the_own_image_does_not_move_its_captions_features():
    reader, _ = reader_of("vmf")
    corpus, evidence = reader.corpus, reader.evidence(reader.corpus.image_embeds)
    own = corpus.text_image_index == 4
    moved = corpus.image_embeds.clone()
    moved[4] = -moved[4]
    other = CorpusReader(
        ReferenceCorpus(corpus.text_embeds, moved, corpus.text_image_index), reader.law, reader.logit_scale, CORRECTION
    )
    before, after = (each.view(corpus.text_embeds, evidence, corpus.text_image_index) for each in (reader, other))
    np.testing.assert_allclose(before.features[own], after.features[own], rtol=1e-6, atol=1e-6)
    assert (before.own_log_posterior[own] > after.own_log_posterior[own] + 0.1).all()


@pytest.mark.parametrize("distribution", ["vmf", "deterministic"])
def test_a_probe_foretells_the_success_of_new_texts(distribution):
    model = untrained_head(distribution)
    split, fresh = (planted_split(seed, 150, count, shown=20.0) for seed, count in ((2, 600), (3, 300)))
    corpus, rows = ReferenceCorpus.sample(model, split)
    correction = EvidenceCorrection(40.0, 0.0) if distribution == "deterministic" else EvidenceCorrection(1.0, 0.5)
    reader = CorpusReader(corpus, model.config.law, model.logit_scale.item(), correction)
    probe = fit_text_probe(reader, split.text_features[rows])
    texts = text_embeds_of(model, fresh.text_features)
    images = F.normalize(fresh.image_features, dim=-1)
    corrected = reader.correction.apply(reader.logit_scale * reader.law.scores(texts, images), reader.evidence(images))
    success = corrected.double().log_softmax(dim=1)[torch.arange(len(texts)), fresh.text_image_index]
    view = reader.view(texts, reader.evidence(corpus.image_embeds))
    simple = TextProbe(probe.of_features, None)
    units = F.normalize(fresh.text_features, dim=-1).double()
    of_vagueness = stats.spearmanr(-units[:, 0], success).statistic  # what the planted dimension itself foretells
    assert of_vagueness > 0.4
    for each in (probe, simple):
        assert stats.spearmanr(each(fresh.text_features, view), success).statistic > 0.8 * of_vagueness
    first = units @ probe.of_features.weights + probe.of_features.intercept
    np.testing.assert_allclose(simple(fresh.text_features, view), first, atol=1e-5)
    both = torch.cat([first[:, None], view.features], dim=1)
    expected = both @ probe.of_all.weights + probe.of_all.intercept
    np.testing.assert_allclose(probe(fresh.text_features, view), expected, atol=1e-4)


def test_a_corpus_of_fewer_pairs_than_neighbours_is_read():
    law = AsymVLMConfig(distribution="vmf", projection_dim=24).law
    generator = torch.Generator().manual_seed(0)
    texts, images = 3 * torch.randn(4, 24, generator=generator), torch.randn(4, 24, generator=generator)
    corpus = ReferenceCorpus(texts, F.normalize(images, dim=-1), torch.arange(4))
    reader = CorpusReader(corpus, law, 1.0, CORRECTION)
    for own in (None, torch.arange(4)):
        assert torch.isfinite(reader.view(texts, reader.evidence(corpus.image_embeds), own).features).all()
