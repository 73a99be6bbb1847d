"""Evaluation with a calibration: the corrected retrieval by brute force, every confidence, and the backbone's side."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special

from modeling_asymvlm.calibration.evidence import EvidenceCorrection
from modeling_asymvlm.evaluation import selective_metrics
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.search.image_index import ImageIndex
from tests.support.planted_pairs import planted_calibration, planted_split, untrained_head


DISTRIBUTIONS = ("vmf", "power_spherical", "deterministic")
SPLIT = planted_split(8, 50, 100)
INDEX = SPLIT.text_image_index.numpy()
RESAMPLES = 60


@cache
def evaluated(distribution: str) -> dict:
    calibration = planted_calibration(distribution)
    return evaluate_split(untrained_head(distribution), SPLIT, calibration=calibration, num_resamples=RESAMPLES)


@torch.no_grad()
def brute_force_scores(distribution: str, correction: EvidenceCorrection) -> np.ndarray:
    """sigma (tau delta - beta e), float64 of shape `(captions, images)`."""
    model, corpus = untrained_head(distribution), planted_calibration(distribution).corpus
    tau, law = model.logit_scale.item(), model.config.law
    images = F.normalize(SPLIT.image_features, dim=-1).double()
    texts = model(text_features=SPLIT.text_features).text_embeds.double()
    of_calibration = planted_calibration(distribution).correction  # whose evidence has a temperature of its own
    reference = of_calibration.sharpening * tau * law.scores(corpus.text_embeds.double(), images).numpy()
    evidence = special.logsumexp(reference, axis=0) - np.log(len(reference))
    return correction.sigma * (tau * law.scores(texts, images).numpy() - correction.beta * evidence)


def cosine_scores() -> np.ndarray:
    texts, images = (F.normalize(each.double(), dim=-1) for each in (SPLIT.text_features, SPLIT.image_features))
    return (texts @ images.T).numpy()


def hits(scores: np.ndarray) -> np.ndarray:
    return scores.argmax(axis=1) == INDEX


def image_hits(scores: np.ndarray) -> np.ndarray:
    return INDEX[scores.argmax(axis=0)] == np.arange(scores.shape[1])


def own_log_posterior(scores: np.ndarray) -> np.ndarray:
    return special.log_softmax(scores, axis=1)[np.arange(len(INDEX)), INDEX]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_retrieval_text_to_image_is_that_of_corrected_scores(distribution):
    correction, results = planted_calibration(distribution).correction, evaluated(distribution)
    assert correction.beta > 0
    corrected = brute_force_scores(distribution, correction)
    plain = brute_force_scores(distribution, EvidenceCorrection(1.0, 0.0))
    for name, scores in (
        ("retrieval", corrected),
        ("uncorrected_retrieval", plain),
        ("backbone_retrieval", cosine_scores()),
    ):
        assert results[name]["text_to_image_recall@1"] == pytest.approx(hits(scores).mean()), name
    for k in (1, 5, 10):
        key = f"image_to_text_recall@{k}"
        assert results["retrieval"][key] == results["uncorrected_retrieval"][key]
    assert results["retrieval"]["image_to_text_recall@1"] == pytest.approx(image_hits(plain).mean())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_index_finds_the_images_that_the_evaluation_finds(distribution):
    model, calibration = untrained_head(distribution), planted_calibration(distribution)
    index = ImageIndex.from_split(model, SPLIT, calibration=calibration)
    with torch.no_grad():
        queries = model(text_features=SPLIT.text_features).text_embeds
    found = index.search(queries, k=1)
    scores = brute_force_scores(distribution, calibration.correction)
    np.testing.assert_array_equal(found.rows[:, 0], scores.argmax(axis=1))
    recall = (found.rows[:, 0] == INDEX).mean()
    assert evaluated(distribution)["retrieval"]["text_to_image_recall@1"] == pytest.approx(recall)
    np.testing.assert_allclose(found.log_posterior[:, 0], special.log_softmax(scores, axis=1).max(axis=1), atol=1e-3)
    np.testing.assert_allclose(found.confidence, calibration.result_confidence(found.log_posterior[:, 0]))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_confidence_is_judged_by_the_first_results_it_speaks_of(distribution):
    calibration, figures = planted_calibration(distribution), evaluated(distribution)["confidences"]
    scores, cosines = brute_force_scores(distribution, calibration.correction), cosine_scores()
    top = special.softmax(scores, axis=1).max(axis=1)
    backbone = special.softmax(calibration.backbone_scale * cosines, axis=1).max(axis=1)
    expected = {
        "text_confidence": (calibration.text_probability(SPLIT.text_features), hits(scores)),
        "posterior": (top, hits(scores)),
        "confidence": (top, hits(scores)),  # rises with the posterior
        "backbone_posterior": (backbone, hits(cosines)),
        "backbone_top1_cosine": (cosines.max(axis=1), hits(cosines)),
    }
    assert set(figures) - {"concentration"} == set(expected)
    assert ("concentration" in figures) == (distribution != "deterministic")
    for name, (confidence, correct) in expected.items():
        metrics = selective_metrics(-confidence, correct)
        assert figures[name]["auroc"] == pytest.approx(metrics["auroc"], abs=2e-3), name
        assert figures[name]["aurc"] == pytest.approx(metrics["aurc"], abs=2e-3), name
    for name, figure in figures.items():
        low, high = figure["auroc_interval"]
        assert low <= figure["auroc"] <= high
        assert ("difference_to_backbone" in figure) == (not name.startswith("backbone"))
        is_probability = name not in ("concentration", "backbone_top1_cosine")
        assert ("expected_calibration_error" in figure) == is_probability
        assert ("trusted" in figure) == (name in ("text_confidence", "confidence"))
        if "difference_to_backbone" in figure:
            low, high = figure["difference_to_backbone"]
            assert low <= figure["auroc"] - figures["backbone_posterior"]["auroc"] <= high
    assert figures["confidence"]["trusted"] is calibration.of_result.measured.is_trusted


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_differences_to_the_backbone_are_those_of_brute_force(distribution):
    calibration, differences = planted_calibration(distribution), evaluated(distribution)["differences_to_backbone"]
    scores, cosines = brute_force_scores(distribution, calibration.correction), cosine_scores()
    plain = brute_force_scores(distribution, EvidenceCorrection(1.0, 0.0))
    log_likelihood = own_log_posterior(calibration.backbone_scale * cosines) - own_log_posterior(scores)
    expected = {
        "text_to_image_recall@1": hits(scores).mean() - hits(cosines).mean(),
        "image_to_text_recall@1": image_hits(plain).mean() - image_hits(cosines).mean(),
        "negative_log_likelihood": log_likelihood.mean(),
    }
    assert set(differences) == set(expected)
    for name, mean in expected.items():
        assert differences[name]["mean"] == pytest.approx(mean, abs=1e-3), name
        low, high = differences[name]["interval"]
        assert low <= differences[name]["mean"] <= high


def test_an_untrained_head_without_correction_finds_what_its_backbone_finds():
    calibration = replace(planted_calibration(), correction=EvidenceCorrection(1.0, 0.0))
    results = evaluate_split(untrained_head(), SPLIT, calibration=calibration, num_resamples=RESAMPLES)
    difference = results["differences_to_backbone"]["text_to_image_recall@1"]
    assert difference["mean"] == 0.0 and tuple(difference["interval"]) == (0.0, 0.0)
    for k in (1, 5, 10):
        key = f"text_to_image_recall@{k}"
        assert results["retrieval"][key] == results["backbone_retrieval"][key]
    assert results["retrieval"] == results["uncorrected_retrieval"]


def test_without_a_calibration_none_of_it_is_there():
    results = evaluate_split(untrained_head(), SPLIT, num_resamples=RESAMPLES)
    assert not {"confidences", "differences_to_backbone", "uncorrected_retrieval"} & set(results)
    assert results["retrieval"] == evaluated("vmf")["uncorrected_retrieval"]
