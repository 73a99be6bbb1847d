"""The evidence-corrected search: the same order, scores and posteriors as brute force in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_asymvlm import ConformalSets
from modeling_asymvlm.calibration.evidence import EvidenceCorrection
from modeling_asymvlm.model.objective import Likelihood
from modeling_asymvlm.search.image_index import ImageIndex


DIM = 8


class FakeCalibration:
    """What an index asks of a calibration; the evidence of an image is a function of its first two coordinates."""

    def __init__(self, sigma: float, beta: float, identity: str = "one"):
        self.correction, self.identity = EvidenceCorrection(sigma, beta), identity

    def evidence(self, image_embeds: torch.Tensor) -> torch.Tensor:
        units = F.normalize(image_embeds.double(), dim=-1)
        return 20 * units[:, 0] - 5 * units[:, 1].abs() + 3

    def result_confidence(self, log_posterior):
        return np.exp(log_posterior)

    def presence(self, text_embeds, top, second, mean, deviation, num_images, prior=0.5):
        self.seen = [np.asarray(each) for each in (top, second, mean, deviation)]
        return np.full(len(text_embeds), prior)


def build(calibration, distribution: str, images: torch.Tensor, tau: float = 0.7) -> ImageIndex:
    index = ImageIndex(DIM, distribution=distribution, logit_scale=tau, calibration=calibration)
    index.add(images)
    return index


def brute_force(index: ImageIndex, texts: torch.Tensor) -> torch.Tensor:
    """Corrected scores in float64, `(texts, images)`, of the vectors and the evidence that the index keeps."""
    vectors = torch.from_numpy(index.vectors.copy()).double()
    delta = Likelihood(index.law.distribution).scores(texts.double(), vectors[:, :DIM])
    return index.correction.apply(index.logit_scale * delta, vectors[:, -1])


def drawn(seed: int, texts: int = 40, images: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    eta = torch.randn(texts, DIM, generator=generator) * torch.logspace(-1, 3, texts)[:, None]
    return eta, torch.randn(images, DIM, generator=generator)


@pytest.mark.parametrize("method", ["bound", "scan"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_results_are_those_of_brute_force(distribution, beta, method):
    texts, images = drawn(seed=1)
    index = build(FakeCalibration(1.3, beta), distribution, images)
    found = index.search(texts, k=7, method=method)
    expected = brute_force(index, texts)
    order = expected.argsort(dim=1, descending=True, stable=True)[:, :7]
    np.testing.assert_array_equal(found.rows, order.numpy())
    best = expected.gather(1, order).numpy()
    np.testing.assert_allclose(found.scores, best, rtol=1e-9, atol=1e-9)
    posterior = expected.log_softmax(dim=1).gather(1, order).numpy()
    largest = 1.3 * index.logit_scale * float(torch.linalg.vector_norm(texts, dim=1).max())
    np.testing.assert_allclose(found.log_posterior, posterior, rtol=1e-6, atol=2e-7 * largest)  # as search states
    assert found.exact


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_near_ties_below_the_resolution_of_float32_are_told_apart(distribution):
    texts, images = drawn(seed=2, texts=6, images=1)
    images = images + 1e-7 * torch.arange(400)[:, None] * torch.ones(DIM)
    index = build(FakeCalibration(2.0, 0.7), distribution, torch.cat([images, images]))
    for method in ("bound", "scan"):
        found = index.search(texts, k=5, method=method)
        expected = brute_force(index, texts)
        np.testing.assert_array_equal(found.rows, expected.argsort(dim=1, descending=True, stable=True)[:, :5].numpy())


def test_a_text_without_direction_lists_the_images_of_least_evidence():
    _, images = drawn(seed=3)
    index = build(FakeCalibration(1.0, 0.5), "power_spherical", images)
    found = index.search(torch.zeros(1, DIM), k=3)
    np.testing.assert_array_equal(found.rows[0], np.argsort(index.evidence, kind="stable")[:3])


def test_posteriors_of_the_whole_gallery_sum_to_one_and_right_answers_have_theirs():
    texts, images = drawn(seed=4, texts=12)
    index = build(FakeCalibration(0.8, 0.4), "power_spherical", images)
    found = index.search(texts, k=len(index))
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1, rtol=1e-4)
    right = torch.arange(12)[:, None]
    own = np.take_along_axis(found.log_posterior, (found.rows == right.numpy()).argmax(axis=1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(index.log_posterior(texts, right.tolist()), own, rtol=1e-5, atol=1e-5)


def test_confidences_come_from_the_calibration_and_moments_from_the_whole_gallery():
    texts, images = drawn(seed=5)
    calibration = FakeCalibration(1.0, 0.5)
    index = build(calibration, "vmf", images[:200])
    index.search(texts[:2])
    index.add(images[200:])
    found = index.search(texts, k=3, prior=0.2)
    cosines = F.normalize(texts.double(), dim=-1) @ F.normalize(images.double(), dim=-1).T
    top_two = cosines.topk(2, dim=1).values.numpy()
    for seen, expected in zip(
        calibration.seen,
        (top_two[:, 0], top_two[:, 1], cosines.mean(dim=1), cosines.std(dim=1, correction=0)),
        strict=True,
    ):
        np.testing.assert_allclose(seen, np.asarray(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.confidence, found.posterior[:, 0])
    np.testing.assert_allclose(found.presence, 0.2)
    assert index.search(texts, posterior=False).confidence is None


def test_without_a_calibration_there_are_no_confidences():
    texts, images = drawn(seed=6)
    index = build(None, "vmf", images)
    found = index.search(texts)
    assert found.confidence is None and found.presence is None and index.evidence is None
    assert index.vectors.shape[1] == DIM


@pytest.mark.parametrize("memory_map", [False, True])
def test_a_saved_index_ranks_as_before_and_knows_its_calibration(tmp_path, memory_map):
    texts, images = drawn(seed=7)
    calibration = FakeCalibration(1.1, 0.6)
    index = build(calibration, "power_spherical", images)
    index.save(tmp_path / "index")
    loaded = ImageIndex.load(tmp_path / "index", memory_map=memory_map)
    expected, found = index.search(texts), loaded.search(texts)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.confidence is None
    again = ImageIndex.load(tmp_path / "index", calibration=calibration, memory_map=memory_map)
    np.testing.assert_array_equal(again.search(texts).presence, expected.presence)
    with pytest.raises(ValueError, match="made with another calibration"):
        ImageIndex.load(tmp_path / "index", calibration=FakeCalibration(1.1, 0.6, identity="two"))


def test_an_index_loaded_without_its_calibration_does_not_grow(tmp_path):
    _, images = drawn(seed=8)
    build(FakeCalibration(1.0, 0.5), "vmf", images).save(tmp_path / "index")
    with pytest.raises(ValueError, match="load it with calibration="):
        ImageIndex.load(tmp_path / "index").add(images)


def test_conformal_sets_on_the_corrected_posterior_keep_their_promise():
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(150, DIM, generator=generator)
    own = torch.randint(150, (3000,), generator=generator)
    texts = 12 * F.normalize(
        F.normalize(images[own], dim=-1) + 0.35 * torch.randn(3000, DIM, generator=generator), dim=-1
    )
    index = build(FakeCalibration(1.0, 0.3), "vmf", images, tau=1.0)
    log_posterior = index.log_posterior(texts, own[:, None].tolist())
    sets = ConformalSets.calibrate(log_posterior[:1000], alpha=0.1)
    found = index.search(texts[1000:], k=len(index))
    sizes, _ = sets.sizes(found.log_posterior, gallery_size=len(index))
    place = (found.rows == own[1000:, None].numpy()).argmax(axis=1)
    coverage = (place < sizes).mean()
    assert 0.87 < coverage < 0.93  # 0.9 by three standard errors of 2,000 queries and 1,000 of calibration


@pytest.mark.parametrize("distribution", ["vmf", "deterministic"])
def test_other_engines_rank_alike_by_inner_products(distribution):
    texts, images = drawn(seed=10)
    index = build(FakeCalibration(1.0, 0.5), distribution, images)
    products = index.query_vectors(texts).astype(np.float64) @ index.vectors.astype(np.float64).T
    np.testing.assert_array_equal(products.argmax(axis=1), index.search(texts, k=1).rows[:, 0])
