"""Search is that of brute force in float64, proven per query; posteriors, filters, files and refusals."""

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax


faiss = pytest.importorskip("faiss")

from modeling_asymvlm.model.objective import pair_scores  # noqa: E402
from modeling_asymvlm.search import batch_search  # noqa: E402
from modeling_asymvlm.search import certified_top_k as certified_search  # noqa: E402
from modeling_asymvlm.search import index_search as searchable_index  # noqa: E402
from modeling_asymvlm.search.image_index import ImageIndex  # noqa: E402
from modeling_asymvlm.search.power_spherical_bound import tangent_queries  # noqa: E402
from modeling_asymvlm.search.text_index import TextIndex  # noqa: E402


LAWS = ("vmf", "power_spherical", "deterministic")
TAU = 2.5
POSTERIOR_ERROR = 2e-7 * TAU  # relative, and times kappa: what the search promises


def draw(seed: int, num_texts: int, num_images: int, dim: int, kappas: tuple[float, float]):
    """Natural parameters and images, both float32, some texts close to an image."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(num_images, dim, generator=generator), dim=1)
    noise = torch.randn(num_texts, dim, generator=generator) / dim**0.5
    pull = torch.rand(num_texts, 1, generator=generator)
    means = F.normalize(noise + pull * images[torch.randint(num_images, (num_texts,), generator=generator)], dim=1)
    low, high = kappas
    return means * (low + (high - low) * torch.rand(num_texts, 1, generator=generator)), images


def text_index(eta: torch.Tensor, law: str, **arguments) -> TextIndex:
    index = TextIndex(eta.shape[1], distribution=law, logit_scale=TAU, **arguments)
    index.add(eta, [f"caption {row}" for row in range(len(eta))])
    return index


def image_index(images: torch.Tensor, law: str) -> ImageIndex:
    index = ImageIndex(images.shape[1], distribution=law, logit_scale=TAU)
    index.add(images)
    return index


def texts_and_queries(eta: torch.Tensor, images: torch.Tensor) -> tuple[TextIndex, torch.Tensor]:
    return text_index(eta, "vmf"), images


def images_and_queries(eta: torch.Tensor, images: torch.Tensor) -> tuple[ImageIndex, torch.Tensor]:
    return image_index(images, "vmf"), eta


def brute_force(scores: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the first k for each query `(queries, rows)`; of equal scores the lower row first."""
    rows = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    return rows.numpy(), scores.gather(1, rows).numpy()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kappas", [(2, 8), (5, 50), (50, 500)], ids=str)
@pytest.mark.parametrize("method", ["bound", "scan"])
def test_texts_for_images_are_those_of_float64_brute_force(law, kappas, method, monkeypatch):
    monkeypatch.setattr(certified_search, "_exhaustive", None)  # the proof must come from the candidates
    eta, images = draw(kappas[1], 20_000, 12, 64, kappas)
    scores = pair_scores(eta.double(), images.double(), distribution=law).T
    rows, expected = brute_force(scores, 10)
    found = text_index(eta, law).search(images, method=method, batch_size=5)
    assert found.exact and found.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-7 if law == "deterministic" else 1e-12)
    posterior = torch.softmax(TAU * scores, dim=1).numpy()
    np.testing.assert_allclose(
        found.posterior, np.take_along_axis(posterior, rows, 1), rtol=POSTERIOR_ERROR * kappas[1]
    )
    assert found.labels[3][4] == f"caption {rows[3, 4]}"
    if law == "deterministic":
        assert np.isnan(found.uncertainty).all()
    else:
        np.testing.assert_allclose(found.uncertainty, 1 / eta.double().norm(dim=1).numpy()[rows], rtol=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["bound", "scan"])
def test_images_for_texts_are_those_of_float64_brute_force(law, method, monkeypatch):
    monkeypatch.setattr(certified_search, "_exhaustive", None)
    eta, images = draw(3, 12, 20_000, 64, (5, 50))
    index = image_index(images, law)
    scores = pair_scores(eta.double(), torch.tensor(index.vectors).double(), distribution=law)
    rows, expected = brute_force(scores, 10)
    found = index.search(eta, method=method, batch_size=5)
    assert found.exact and found.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)
    posterior = torch.softmax(TAU * scores, dim=1).numpy()
    np.testing.assert_allclose(found.posterior, np.take_along_axis(posterior, rows, 1), rtol=POSTERIOR_ERROR * 50)
    assert found.uncertainty.shape == (12, 10)
    if law != "deterministic":
        np.testing.assert_allclose(found.uncertainty[:, 7], 1 / eta.double().norm(dim=1).numpy(), rtol=1e-12)


def duplicates(generator):
    """Every text three hundred times: more ties than candidates."""
    return torch.randn(4, 8, generator=generator).repeat(300, 1)


def without_direction(generator):
    """Half of the texts have kappa = 0 and therefore score 0, above all that disagree."""
    eta = torch.randn(600, 8, generator=generator) * 3
    eta[::2] = 0
    return eta


def equal_concentrations(generator):
    return 7 * F.normalize(torch.randn(600, 8, generator=generator), dim=1)


def nearly_equal(generator):
    """Scores that float32 cannot tell apart."""
    return torch.randn(1, 8, generator=generator) + 1e-7 * torch.randn(600, 8, generator=generator)


def opposite(generator):
    """Every text near the antipode of the queries, where ln(1 + cosine) is steepest and then clamped."""
    away = torch.zeros(600, 8)
    away[:, 0] = -200
    return away + torch.randn(600, 8, generator=generator) * torch.linspace(0, 3, 600)[:, None]


@pytest.mark.parametrize("law", ["vmf", "power_spherical"])
@pytest.mark.parametrize("method", ["bound", "scan"])
@pytest.mark.parametrize("make", [duplicates, without_direction, equal_concentrations, nearly_equal, opposite])
@pytest.mark.parametrize("k", [1, 10, 600])
def test_adversarial_galleries_are_searched_exactly(law, method, make, k):
    generator = torch.Generator().manual_seed(5)
    eta = make(generator)
    images = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    images[0] = torch.eye(8)[0]
    scores = pair_scores(eta.double(), images.double(), distribution=law).T
    found = text_index(eta, law).search(images, k, method=method)
    assert all(len(set(rows)) == k for rows in found.rows.tolist())
    np.testing.assert_allclose(found.scores, brute_force(scores, k)[1], rtol=1e-11, atol=1e-12)
    own = np.take_along_axis(scores.numpy(), found.rows, 1)
    np.testing.assert_allclose(found.scores, own, rtol=1e-11, atol=1e-12)
    equal = found.scores[:, 1:] == found.scores[:, :-1]
    assert (np.diff(found.rows, axis=1)[equal] > 0).all()  # of equal scores the lower row first


def test_the_whole_gallery_has_posterior_one_whatever_the_filter():
    eta, images = draw(8, 500, 4, 16, (2, 60))
    index = text_index(eta, "power_spherical")
    whole = index.search(images, 500)
    np.testing.assert_allclose(whole.posterior.sum(axis=1), 1, rtol=POSTERIOR_ERROR * 60)
    uncertainty = 1 / eta.double().norm(dim=1).numpy()
    some = index.search(images, 500, where=(0.02, 0.05))
    allowed = np.flatnonzero((uncertainty >= 0.02) & (uncertainty <= 0.05))
    assert 10 < len(allowed) < 500 and some.rows.shape == (4, len(allowed))
    for query in range(4):
        kept = np.isin(whole.rows[query], allowed)
        assert some.rows[query].tolist() == whole.rows[query][kept].tolist()
        np.testing.assert_allclose(some.posterior[query], whole.posterior[query][kept], rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_log_posterior_of_right_answers_is_that_of_the_search(law):
    eta, images = draw(9, 300, 4, 16, (2, 60))
    index = text_index(eta, law)
    whole = index.search(images, 300)
    right = [[5], [7, 200, 9], [0], [299, 1]]
    expected = [max(whole.log_posterior[i][np.isin(whole.rows[i], own)]) for i, own in enumerate(right)]
    np.testing.assert_allclose(index.log_posterior(images, right, batch_size=3), expected, atol=POSTERIOR_ERROR * 60)


def test_tangents_bound_the_score_everywhere_and_touch_it_at_their_point():
    eta, images = draw(10, 400, 6, 32, (0, 300))
    index = text_index(eta, "power_spherical")
    scores = pair_scores(eta.double(), images.double(), distribution="power_spherical").T
    cosines = F.normalize(images.double(), dim=1) @ F.normalize(eta.double(), dim=1).T
    for text in (0, 17, 311):
        queries = tangent_queries(F.normalize(images.double(), dim=1), cosines[:, text])
        bounds = queries @ torch.tensor(index.vectors).T  # in float32
        assert (bounds.double() >= scores).all()
        np.testing.assert_allclose(bounds[:, text], scores[:, text], atol=3e-5 * 300)


def test_approximate_indexes_are_labelled_and_their_scores_exact():
    eta, images = draw(11, 3000, 8, 32, (5, 50))
    index = text_index(eta, "power_spherical")
    exact, found = index.search(images), index.search(images, approximate=index.build_approximate("HNSW16"))
    assert exact.exact and not found.exact
    scores = pair_scores(eta.double(), images.double(), distribution="power_spherical").T.numpy()
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, found.rows, 1), rtol=1e-12)
    np.testing.assert_array_less(found.scores, exact.scores + 1e-9)
    assert np.isin(found.rows, exact.rows).mean() > 0.5
    assert found.posterior is None
    with_posterior = index.search(images, approximate=index.build_approximate("HNSW16"), posterior=True)
    posterior = np.take_along_axis(softmax(TAU * scores, axis=1), with_posterior.rows, 1)
    np.testing.assert_allclose(with_posterior.posterior, posterior, rtol=POSTERIOR_ERROR * 50)
    with pytest.raises(ValueError, match="found fewer than 200 results"):
        index.search(images, 200, approximate=index.build_approximate("IVF64,Flat"))
    with pytest.raises(ValueError, match="holds 3000 vectors of width 34, this index 5"):
        text_index(eta[:5], "power_spherical").search(images, 2, approximate=index.build_approximate("HNSW16"))


@pytest.mark.parametrize("make", [texts_and_queries, images_and_queries])
def test_an_approximate_search_looks_at_candidates_alone(make, monkeypatch):
    index, queries = make(*draw(16, 500, 500, 16, (5, 50)))
    approximate = index.build_approximate("HNSW16")
    looked_at = []
    original = type(index)._keys

    def counted(self, batch, queries, rows):
        looked_at.append(rows.shape[1])
        return original(self, batch, queries, rows)

    monkeypatch.setattr(type(index), "_keys", counted)
    for module in (batch_search, searchable_index):
        monkeypatch.setattr(module, "scan_gallery", None)
    found = index.search(queries[:3], 5, approximate=approximate)
    assert found.log_posterior is None and sum(looked_at) < 100
    with pytest.raises(TypeError, match="not callable"):  # the scan of all rows
        index.search(queries[:3], 5, approximate=approximate, posterior=True)


@pytest.mark.parametrize("law", LAWS)
def test_vectors_serve_the_index_of_a_datasets_column(law):
    eta, images = draw(12, 400, 3, 16, (20, 30))
    index = text_index(eta, law)
    dataset = datasets.Dataset.from_dict({"caption": index.labels.to_pylist()})
    dataset.add_faiss_index_from_external_arrays(index.vectors, "likelihood", metric_type=faiss.METRIC_INNER_PRODUCT)
    expected = index.search(images, 5)
    for number, query in enumerate(index.query_vectors(images)):
        scores, examples = dataset.get_nearest_examples("likelihood", query, k=20)
        assert set(expected.labels[number]) <= set(examples["caption"])  # a bound may order its first ones otherwise
        if law != "power_spherical":
            np.testing.assert_allclose(scores[:5], expected.scores[number], rtol=1e-5)


def test_progress_is_shown_on_request(capsys):
    eta, images = draw(13, 50, 4, 16, (2, 8))
    index = text_index(eta, "vmf")
    index.search(images, 3)
    assert capsys.readouterr().err == ""
    index.search(images, 3, progress=True, batch_size=2)
    assert "Searching 50 texts" in capsys.readouterr().err


ETA = torch.tensor([[3.0, 0.0], [0.0, 5.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(torch.ones(0, 2), 1), r"shape \(n, 2\) with n at least 1, got \(0, 2\)"),
        (lambda index: index.search(torch.ones(1, 3), 1), r"got \(1, 3\)"),
        (lambda index: index.search(torch.ones(1, 2, dtype=torch.int64), 1), "floating-point"),
        (
            lambda index: index.search(torch.tensor([[1.0, 0], [float("nan"), 0]]), 1),
            "in 1 of 2 rows, the first is row 1",
        ),
        (lambda index: index.search(torch.zeros(1, 2), 1), "have no direction"),
        (lambda index: index.search(torch.ones(1, 2), 3), "k is 3, but the index holds 2 rows"),
        (lambda index: index.search(torch.ones(1, 2), 0), "k is 0"),
        (lambda index: index.search(torch.ones(1, 2), 1, batch_size=0), "batch_size is 0"),
        (lambda index: index.search(torch.ones(1, 2), 1, method="fast"), "choose one of bound, scan"),
        (
            lambda index: index.search(torch.ones(1, 2), 1, where=(5, 6)),
            "from 5 to 6; those of this index lie from 0.2",
        ),
        (lambda index: index.search(torch.ones(1, 2), 1, where=(0, 1), method="bound"), "cannot filter"),
        (lambda index: index.log_posterior(torch.ones(2, 2), [[0], []]), "1 of them empty"),
        (lambda index: index.log_posterior(torch.ones(1, 2), [[2]]), "row 2 of an index of 2 rows"),
        (lambda index: index.log_posterior(torch.ones(1, 2), [[1, -1]]), "row -1 of an index of 2 rows"),
        (lambda index: index.add(torch.tensor([[float("inf"), 0]])), "text_embeds are NaN or infinite"),
        (lambda index: index.add(torch.ones(2, 2), ["one"]), "1 labels for 2 embeddings"),
        (lambda index: TextIndex(1, distribution="vmf"), "dim is 1"),
        (lambda index: TextIndex(2, distribution="gauss"), "Unknown distribution 'gauss'"),
        (lambda index: TextIndex(2, distribution="vmf", logit_scale=0), "logit_scale is 0"),
        (lambda index: text_index(torch.zeros(1, 2), "deterministic"), "have no direction"),
        (lambda index: text_index(ETA, "deterministic").search(ETA, 1, where=(0, 1)), "do not have"),
        (lambda index: image_index(ETA, "vmf").search(ETA, 1, where=(0, 1)), "images of an ImageIndex have none"),
        (lambda index: image_index(torch.zeros(1, 2), "vmf"), "have no direction"),
    ],
)
def test_bad_input_is_refused_with_its_value_and_leaves_the_index_alone(call, message):
    index = text_index(ETA, "vmf")
    with pytest.raises(ValueError, match=message):
        call(index)
    assert len(index) == len(index.labels) == len(index.concentration) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "Label 0 is of type int: pass a string"),
        (["a", None], "Label 1 is of type NoneType: pass a string"),
        (np.array([0.5, 1]), "Label 0 is of type float64: pass a string"),
        ("ab", "The labels are one string, 'ab': pass a list of strings"),
    ],
)
@pytest.mark.parametrize("make", [text_index, image_index])
def test_labels_that_are_no_strings_are_refused_and_leave_the_index_alone(make, labels, message):
    index = make(ETA, "vmf")
    with pytest.raises(TypeError, match=message):
        index.add(ETA, labels)
    assert len(index) == len(index.labels) == 2
    index.add(ETA, np.array(["a", "b"]))
    assert index.labels.to_pylist()[2:] == ["a", "b"]


def test_a_text_without_direction_finds_all_images_alike():
    _, images = draw(14, 5, 300, 16, (2, 8))
    found = image_index(images, "vmf").search(torch.zeros(1, 16), 4)
    assert found.rows.tolist() == [[0, 1, 2, 3]] and (found.scores == 0).all() and np.isinf(found.uncertainty).all()
    np.testing.assert_allclose(found.posterior, 1 / 300, rtol=1e-6)
