"""The evidence-corrected search: the same order, scores and posteriors as brute force in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from tests.support.bundles import seal_again


pytest.importorskip("faiss")

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel, ConformalSets  # noqa: E402
from modeling_asymvlm.calibration.evidence import EvidenceCorrection
from modeling_asymvlm.model.objective import Likelihood
from modeling_asymvlm.search import certified_top_k
from modeling_asymvlm.search.corrected_scores import CorrectedScores
from modeling_asymvlm.search.image_index import ImageIndex
from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from tests.support.calibrations import make_calibration


DIM = 8
LAWS = ("vmf", "power_spherical", "deterministic")


class FakeCalibration:
    """What an index asks of a calibration; the evidence of an image is a function of its first two coordinates."""

    def __init__(self, sigma: float, beta: float, identity: str = "one"):
        self.correction, self.identity, self.head = EvidenceCorrection(sigma, beta), identity, "a head"

    def of(self, distribution: str, tau: float) -> "FakeCalibration":
        config = SimpleNamespace(law=Likelihood(distribution))
        self.model = SimpleNamespace(config=config, logit_scale=torch.tensor(tau))
        return self

    def check_head(self, model):
        if model.config.hidden_size != 32:
            raise ValueError("made with other head weights")

    def evidence(self, image_embeds: torch.Tensor) -> torch.Tensor:
        units = F.normalize(image_embeds.double(), dim=-1)
        return 20 * units[:, 0] - 5 * units[:, 1].abs() + 3

    def result_confidence(self, log_posterior):
        return np.exp(log_posterior)

    def presence(self, text_embeds, top, second, mean, deviation, num_images, prior=0.5):
        assert top.dtype == second.dtype == mean.dtype == deviation.dtype == np.float64
        self.seen = [np.asarray(each) for each in (top, second, mean, deviation)]
        return np.full(len(text_embeds), prior)


def build(calibration, distribution: str, images: torch.Tensor, tau: float = 0.7) -> ImageIndex:
    calibration = None if calibration is None else calibration.of(distribution, tau)
    index = ImageIndex(images.shape[1], distribution=distribution, logit_scale=tau, calibration=calibration)
    index.add(images)
    return index


def brute_force(index: ImageIndex, texts: torch.Tensor) -> torch.Tensor:
    """Corrected scores in float64, `(texts, images)`, of the vectors and the evidence that the index keeps."""
    vectors = torch.from_numpy(index.vectors.copy()).double()
    delta = Likelihood(index.law.distribution).scores(texts.double(), vectors[:, :-1])
    return index.correction.apply(index.logit_scale * delta, vectors[:, -1])


def cosines_of(index: ImageIndex, texts: torch.Tensor) -> torch.Tensor:
    """In float64, of the vectors that the index keeps."""
    images = torch.from_numpy(index.vectors[:, : index.dim].copy()).double()
    return F.normalize(texts.double(), dim=-1) @ F.normalize(images, dim=-1).T


def statistics(cosines: torch.Tensor) -> list[np.ndarray]:
    """First, second, mean and deviation."""
    first, second = cosines.topk(2, dim=1).values.T
    return [each.numpy() for each in (first, second, cosines.mean(dim=1), cosines.std(dim=1, correction=0))]


def drawn(seed: int, texts: int = 40, images: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    eta = torch.randn(texts, DIM, generator=generator) * torch.logspace(-1, 3, texts)[:, None]
    return eta, torch.randn(images, DIM, generator=generator)


@pytest.mark.parametrize("method", ["bound", "scan"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distribution", LAWS)
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


@pytest.mark.parametrize("distribution", LAWS)
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
    exact = cosines_of(index, texts)
    np.testing.assert_allclose(calibration.seen, statistics(exact), rtol=0, atol=1e-13)
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


@pytest.mark.parametrize("method", ["bound", "scan"])
@pytest.mark.parametrize("distribution", LAWS)
def test_the_proof_comes_from_the_candidates(distribution, method, monkeypatch):
    monkeypatch.setattr(certified_top_k, "_exhaustive", None)
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(20_000, 32, generator=generator)
    texts = images[:12] / images[:12].norm(dim=1, keepdim=True) + torch.randn(12, 32, generator=generator) / 6
    texts *= torch.linspace(2, 60, 12)[:, None]
    index = build(FakeCalibration(0.9, 0.8), distribution, images, tau=2.5)
    expected = brute_force(index, texts)
    found = index.search(texts, k=10, method=method, batch_size=5)
    order = expected.argsort(dim=1, descending=True, stable=True)[:, :10]
    np.testing.assert_array_equal(found.rows, order.numpy())
    np.testing.assert_allclose(found.scores, expected.gather(1, order), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["bound", "scan"])
@pytest.mark.parametrize("distribution", LAWS)
def test_of_equal_scores_the_lower_row_comes_first(distribution, method):
    texts, images = drawn(seed=12, texts=9, images=4)
    index = build(FakeCalibration(1.4, 0.5), distribution, images.repeat(300, 1))
    found = index.search(texts, k=305, method=method)
    best = brute_force(index, texts)[:, :4].argmax(dim=1).numpy()
    np.testing.assert_array_equal(found.rows[:, :300], best[:, None] + 4 * np.arange(300))
    assert (found.scores[:, :300] == found.scores[:, :1]).all() and (found.scores[:, 300] < found.scores[:, 0]).all()
    with pytest.raises(ValueError, match="k is 1201, but the index holds 1200 rows"):
        index.search(texts, k=1201)


@pytest.mark.parametrize("distribution", LAWS)
def test_float32_products_with_their_addend_bound_every_score(distribution):
    texts, images = drawn(seed=13, texts=30)
    images = torch.cat([images, texts, -texts])  # the antipodes too
    index = build(FakeCalibration(1.2, 0.9), distribution, images)
    scores = CorrectedScores(index.law, index.logit_scale, index.correction)
    largest = float(np.abs(index.evidence).max())
    exact, cosines = brute_force(index, texts), cosines_of(index, texts)
    for image in (0, 17, 300, 311):  # touched by the tangents
        vectors, addend = scores.query_vectors(texts.double(), cosines[:, image], largest)
        bounds = (vectors @ torch.tensor(index.vectors).T).double().numpy() + addend[:, None]
        assert (bounds >= exact.numpy()).all()
        touching = (cosines[:, image] >= -0.5).numpy()
        scale = 1 + np.linalg.norm(texts.numpy(), axis=1)[touching] + largest
        np.testing.assert_array_less((bounds - exact.numpy())[touching, image], 1e-5 * scale)


@pytest.mark.parametrize("distribution", LAWS)
def test_beta_zero_ranks_as_without_a_calibration(distribution):
    texts, images = drawn(seed=14)
    plain = build(None, distribution, images).search(texts, k=300)
    index = build(FakeCalibration(1.7, 0.0), distribution, images)
    found = index.search(texts, k=300)
    np.testing.assert_array_equal(found.rows, plain.rows)
    np.testing.assert_allclose(found.scores, 1.7 * 0.7 * plain.scores, rtol=1e-12, atol=1e-12)


def test_an_index_that_grew_is_the_index_of_everything():
    texts, images = drawn(seed=15)
    calibration = FakeCalibration(1.1, 0.6)
    whole, grown = build(calibration, "vmf", images), build(calibration, "vmf", images[:120])
    expected = whole.search(texts, k=20)
    seen = calibration.seen
    for some in images[120:].split(77):
        grown.add(some)
    found = grown.search(texts, k=20, batch_size=7)
    for name in ("rows", "scores", "confidence"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    grown.search(texts)
    np.testing.assert_allclose(calibration.seen, seen, rtol=0, atol=1e-13)


def make_split(seed: int, num_images: int = 30) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(seed)
    return EmbeddingSplit(
        image_ids=[f"image-{seed}-{number}" for number in range(num_images)],
        image_features=torch.randn(num_images, DIM, generator=generator),
        captions=[f"caption {number}" for number in range(num_images)],
        text_features=torch.randn(num_images, DIM, generator=generator),
        text_image_index=torch.arange(num_images),
    )


def make_model(hidden_size: int = 32) -> AsymVLMModel:
    torch.manual_seed(0)
    config = AsymVLMConfig(projection_dim=DIM, hidden_size=hidden_size, num_hidden_layers=1, distribution="vmf")
    return AsymVLMModel(config).eval()


def calibration_of(model: AsymVLMModel) -> FakeCalibration:
    calibration = FakeCalibration(1.3, 0.4).of("vmf", model.logit_scale.item())
    calibration.model = model
    return calibration


def test_a_growth_that_fails_leaves_results_and_moments_as_they_were():
    model, more, texts = make_model(), make_split(2), drawn(seed=16)[0]
    calibration = calibration_of(model)
    index = ImageIndex.from_split(model, make_split(1), calibration=calibration)
    before = index.search(texts)
    more.image_features[25, 3] = float("nan")
    with pytest.raises(ValueError, match="image_embeds are NaN"):
        index.add_split(model, more, batch_size=8)
    with pytest.raises(ValueError, match="1 labels for 2 embeddings"):
        index.add(torch.ones(2, DIM), ["one"])
    after = index.search(texts)
    for name in ("rows", "scores", "log_posterior", "confidence"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_allclose(calibration.seen, statistics(cosines_of(index, texts)), rtol=0, atol=1e-13)
    index._truncate(0)
    index.add(more.image_features[:20])
    index.search(texts)
    np.testing.assert_allclose(calibration.seen, statistics(cosines_of(index, texts)), rtol=0, atol=1e-13)


def test_the_calibration_of_another_head_is_refused():
    with pytest.raises(ValueError, match="other head weights"):
        ImageIndex.from_split(make_model(hidden_size=16), make_split(1), calibration=FakeCalibration(1.0, 0.5))
    calibration = FakeCalibration(1.0, 0.5).of("power_spherical", 0.7)
    with pytest.raises(ValueError, match=r"logit_scale=1, but .* of a head with 'power_spherical', 'exact' and 0.7"):
        ImageIndex(DIM, distribution="power_spherical", calibration=calibration)
    with pytest.raises(ValueError, match="The index has distribution='vmf'"):
        ImageIndex(DIM, distribution="vmf", logit_scale=0.7, calibration=calibration)
    index = ImageIndex(DIM, distribution="power_spherical", logit_scale=0.7, calibration=calibration)
    with pytest.raises(ValueError, match="built by another model"):
        index.add_split(make_model(), make_split(1))


def test_an_index_without_a_calibration_is_not_loaded_with_one(tmp_path):
    build(None, "vmf", drawn(seed=17)[1]).save(tmp_path / "index")
    with pytest.raises(ValueError, match="was made without a calibration: build it again with this one"):
        ImageIndex.load(tmp_path / "index", calibration=FakeCalibration(1.0, 0.5))


@pytest.mark.parametrize("entry", [{"sigma": None}, {"beta": -1}, {"sigma": "much"}])
def test_a_damaged_record_of_the_correction_is_told(entry, tmp_path):
    build(FakeCalibration(1.0, 0.5), "vmf", drawn(seed=18)[1]).save(tmp_path / "index")
    manifest = tmp_path / "index" / "index.json"
    seal_again(manifest, **entry)
    with pytest.raises(ValueError, match="index.json is damaged"):
        ImageIndex.load(tmp_path / "index")


def test_missing_and_foreign_moments_are_told(tmp_path):
    for dim in (DIM, 5):
        build(FakeCalibration(1.0, 0.5), "vmf", drawn(seed=18)[1][:, :dim]).save(tmp_path / str(dim))
    parameters = tmp_path / str(DIM) / "parameters.safetensors"
    parameters.write_bytes((tmp_path / "5" / "parameters.safetensors").read_bytes())
    seal_again(tmp_path / str(DIM) / "index.json")
    with pytest.raises(ValueError, match="not those of vectors of width 8"):
        ImageIndex.load(tmp_path / str(DIM))
    parameters.unlink()
    with pytest.raises(ValueError, match="incomplete or damaged"):
        ImageIndex.load(tmp_path / str(DIM))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("products", lambda values: 2 * values),
        ("products", lambda values: values * np.nan),
        ("total", lambda values: values + 300),
        ("evidence_range", lambda values: values[::-1].copy()),
        ("evidence_range", lambda values: values + np.inf),
    ],
)
def test_moments_of_another_gallery_are_told(name, change, tmp_path):
    build(FakeCalibration(1.0, 0.5), "vmf", drawn(seed=18)[1]).save(tmp_path / "index")
    file = tmp_path / "index" / "parameters.safetensors"
    parameters = load_file(file)
    save_file({**parameters, name: change(parameters[name])}, file)
    seal_again(tmp_path / "index" / "index.json")
    with pytest.raises(ValueError, match="not those of 300 unit vectors with finite evidence"):
        ImageIndex.load(tmp_path / "index")


def test_a_mapped_index_knows_its_moments(tmp_path):
    texts, images = drawn(seed=19)
    calibration = FakeCalibration(1.0, 0.5)
    build(calibration, "vmf", images).save(tmp_path / "index")
    loaded = ImageIndex.load(tmp_path / "index", calibration=calibration, memory_map=True)
    loaded.search(texts)
    np.testing.assert_allclose(calibration.seen, statistics(cosines_of(loaded, texts)), rtol=0, atol=1e-13)


def test_confidences_come_with_the_posterior_alone():
    texts, images = drawn(seed=20)
    index = build(FakeCalibration(1.0, 0.5), "power_spherical", images)
    approximate = index.build_approximate("Flat")
    for options in ({"posterior": False}, {"approximate": approximate}):
        found = index.search(texts, **options)
        assert found.confidence is None and found.presence is None and found.log_posterior is None
    expected = index.search(texts)
    for options in ({"method": "bound"}, {"approximate": approximate, "posterior": True}):
        found = index.search(texts, **options)
        np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-6)
        np.testing.assert_array_equal(found.presence, expected.presence)
    for prior in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="prior is .* between 0 and 1"):
            index.search(texts, prior=prior)


def test_what_a_calibration_does_not_trust_is_none_and_one_image_has_no_second():
    texts, images = drawn(seed=21)
    calibration = FakeCalibration(1.0, 0.5)
    calibration.result_confidence = lambda log_posterior: None
    found = build(calibration, "vmf", images).search(texts, batch_size=7)
    assert found.confidence is None and found.presence.shape == (len(texts),)
    found = build(FakeCalibration(1.0, 0.5), "vmf", images[:1]).search(texts, k=1)
    assert found.presence is None
    np.testing.assert_allclose(found.confidence, 1, rtol=1e-3)
    build(calibration, "vmf", images[:2]).search(texts, k=1)
    assert all(np.isfinite(seen).all() for seen in calibration.seen)


def test_the_two_highest_cosines_are_those_of_the_gallery_not_of_the_results():
    texts, images = drawn(seed=22)
    calibration = FakeCalibration(1.0, 40.0)
    index = build(calibration, "power_spherical", torch.cat([images, images[:100]]))
    found = index.search(texts, k=2)
    cosines = cosines_of(index, texts)
    assert (np.take_along_axis(cosines.numpy(), found.rows, 1)[:, 0] < cosines.amax(dim=1).numpy() - 0.1).any()
    np.testing.assert_allclose(calibration.seen, statistics(cosines), rtol=0, atol=1e-13)


@pytest.mark.parametrize("distribution", LAWS)
def test_an_answer_far_above_the_others_needs_no_exhaustive_search(distribution, monkeypatch):
    monkeypatch.setattr(certified_top_k, "_exhaustive", None)
    generator = torch.Generator().manual_seed(23)
    images = F.normalize(torch.randn(8_000, 128, generator=generator), dim=1)
    index = build(FakeCalibration(1.0, 0.5), distribution, images, tau=2.5)
    found = index.search(40 * images[:20], k=10, posterior=False)  # a cosine of 1 and, next, of about 0.3
    np.testing.assert_array_equal(found.rows[:, 1:], brute_force(index, 40 * images[:20]).topk(10).indices[:, 1:])


@pytest.mark.parametrize("distribution", LAWS)
def test_a_fitted_calibration_gives_its_own_figures(distribution):
    torch.manual_seed(0)
    config = AsymVLMConfig(projection_dim=DIM, hidden_size=16, num_hidden_layers=1, distribution=distribution)
    model = AsymVLMModel(config).eval()
    split, calibration = make_split(24, num_images=50), make_calibration(model)
    index = ImageIndex.from_split(model, split, calibration=calibration)
    with torch.no_grad():
        texts = model.get_text_features(text_features=split.text_features).pooler_output
        logits = model.logit_scale * model.config.law.scores(texts, split.image_features)
    expected = calibration.correction.apply(logits, calibration.evidence(split.image_features))
    found = index.search(texts, k=50, prior=0.3, batch_size=16)
    np.testing.assert_allclose(found.scores, expected.gather(1, torch.from_numpy(found.rows)), rtol=1e-4, atol=1e-4)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    confidence = calibration.result_confidence(found.log_posterior[:, 0])
    presence = calibration.presence(texts, *statistics(cosines_of(index, texts)), len(index), prior=0.3)
    for own, its in ((found.confidence, confidence), (found.presence, presence)):
        assert (own is None) == (its is None)
        if own is not None and its is not None:
            np.testing.assert_allclose(own, its, rtol=1e-6)
