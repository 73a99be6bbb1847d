"""Candidates of foreign engines: exact scores, and proofs that hold."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F


pytest.importorskip("faiss")

from modeling_asymvlm.search.image_index import ImageIndex  # noqa: E402
from modeling_asymvlm.search.index_search import SearchableIndex
from modeling_asymvlm.search.text_index import TextIndex
from tests.search.test_corrected_search import LAWS, FakeCalibration
from tests.search.test_corrected_search import build as corrected_index


DIM, TAU = 32, 2.5
KINDS = ("texts", "images", "corrected images")


def make(
    kind: str, law: str, rows: int = 4000, queries: int = 24, seed: int = 0
) -> tuple[SearchableIndex, torch.Tensor]:
    """An index and queries close to some of its rows."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(queries if kind == "texts" else rows, DIM, generator=generator), dim=1)
    num_texts = rows if kind == "texts" else queries
    own = images[torch.arange(num_texts) % len(images)]
    pull = 0.6 * torch.rand(num_texts, 1, generator=generator)
    means = F.normalize(torch.randn(num_texts, DIM, generator=generator) / DIM**0.5 + pull * own, dim=1)
    eta = means * (2 + 50 * torch.rand(num_texts, 1, generator=generator))
    if kind == "texts":
        index: SearchableIndex = TextIndex(DIM, distribution=law, logit_scale=TAU)
        index.add(eta, [f"caption {row}" for row in range(rows)])
        return index, images
    if kind == "corrected images":
        return corrected_index(FakeCalibration(1.2, 0.8), law, images, tau=TAU), eta
    index = ImageIndex(DIM, distribution=law, logit_scale=TAU)
    index.add(images)
    return index, eta


def engine(index: SearchableIndex, vectors: np.ndarray, count: int, as_distance: bool = False) -> np.ndarray:
    """The rows of largest inner product, by a flat engine in float32, in whatever order."""
    ranking = vectors @ index.vectors.T
    if as_distance:
        ranking = np.float32(1) - (np.float32(1) - ranking)
    return np.argpartition(-ranking, count - 1, axis=1)[:, :count]


def same(found, expected, queries=slice(None)):
    np.testing.assert_array_equal(found.rows[queries], expected.rows[queries])
    np.testing.assert_array_equal(found.scores[queries], expected.scores[queries])
    assert [found.labels[i] for i in np.arange(len(found))[queries]] == [
        expected.labels[i] for i in np.arange(len(found))[queries]
    ]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_random_candidates_are_ranked_as_by_brute_force_and_prove_nothing(kind, law):
    index, queries = make(kind, law)
    generator = np.random.default_rng(1)
    candidates = np.stack([generator.permutation(len(index))[:60] for _ in queries])
    whole = index.search(queries, len(index))
    found = index.refine(queries, candidates, 7, posterior=True, batch_size=5)
    for query in range(len(queries)):
        kept = np.isin(whole.rows[query], candidates[query])
        assert found.rows[query].tolist() == whole.rows[query][kept][:7].tolist()
        np.testing.assert_array_equal(found.scores[query], whole.scores[query][kept][:7])
        np.testing.assert_allclose(found.log_posterior[query], whole.log_posterior[query][kept][:7], rtol=1e-4)
        np.testing.assert_array_equal(found.uncertainty[query], whole.uncertainty[query][kept][:7])
    assert not found.proven.any() and not found.exact
    assert found.labels[3] == [index.labels[row].as_py() for row in found.rows[3].tolist()]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_distance", [False, True])
def test_candidates_of_an_exhaustive_engine_prove_the_results_of_a_search(kind, law, as_distance):
    index, queries = make(kind, law)
    vectors = index.query_vectors(queries)
    expected = index.search(queries, 10, posterior=False)
    shares = []
    for count in (10, 20, 200):
        candidates = engine(index, vectors, count, as_distance)
        found = index.refine(queries, candidates, searched_with=vectors, batch_size=7)
        same(found, expected, np.flatnonzero(found.proven))
        shares.append(found.proven.mean())
        assert not index.refine(queries, candidates).proven.any()  # what is not said is not known
    assert shares[0] < 0.2 and shares[2] == 1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_proof_is_wrong_where_scores_are_nearly_equal(kind, law):
    """Rows that differ by less than float32 tells: a list that is cut among them proves nothing."""
    wrong = proven = 0
    for seed in range(20):
        index, queries = make(kind, law, rows=60, queries=6, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        base = torch.from_numpy(index.vectors[:, :DIM].copy())
        near = base[:3].repeat(40, 1) + 3e-7 * torch.randn(120, DIM, generator=generator)
        index.add(torch.cat([near, base[3:]]))
        vectors = index.query_vectors(queries)
        expected = index.search(queries, 5, posterior=False)
        for count in (5, 8, 45, 130):
            found = index.refine(queries, engine(index, vectors, count), 5, searched_with=vectors)
            agrees = (found.scores == expected.scores).all(axis=1)
            wrong, proven = wrong + int((found.proven & ~agrees).sum()), proven + int(found.proven.sum())
    assert wrong == 0 and proven > 100


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_differ_prove_less_and_foreign_ones_are_refused(kind):
    index, queries = make(kind, "power_spherical")
    vectors = index.query_vectors(queries)
    coarse = vectors.astype(np.float16).astype(np.float32)
    expected = index.search(queries, 10, posterior=False)
    own = index.refine(queries, engine(index, vectors, 60), searched_with=vectors)
    found = index.refine(queries, engine(index, coarse, 60), searched_with=coarse)
    same(found, expected, np.flatnonzero(found.proven))
    assert found.proven.sum() <= own.proven.sum()
    with pytest.raises(ValueError, match="not what query_vectors.* gives for query 1[12]:"):
        swapped = vectors[[*range(11), 12, 11, *range(13, len(vectors))]]
        index.refine(queries, engine(index, vectors, 60), searched_with=swapped, batch_size=5)
    for broken in (vectors[1:], vectors[:, 1:], vectors * np.nan):
        with pytest.raises(ValueError, match="searched_with has shape"):
            index.refine(queries, engine(index, vectors, 60), searched_with=broken)


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_as_candidates_are_a_search(kind):
    index, queries = make(kind, "power_spherical", rows=90)
    found = index.refine(queries, np.tile(np.arange(90)[::-1], (len(queries), 1)), 90, posterior=True, prior=0.3)
    expected = index.search(queries, 90, prior=0.3)
    same(found, expected)
    assert found.proven.all() and found.exact
    for name in ("log_posterior", "confidence", "presence"):
        if getattr(expected, name) is not None:
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)
    assert (found.confidence is not None) == (kind == "corrected images")


@pytest.mark.parametrize("law", LAWS)
def test_columns_are_what_their_names_say(law):
    index, images = make("texts", law)
    eta = torch.from_numpy(index.vectors[:, :DIM].copy()).double()
    units = F.normalize(images.double(), dim=1)
    score = index.law.scores(eta, units).T.numpy()
    products = (eta @ units.T).numpy()
    if law == "power_spherical":
        kappa = index.concentration
        np.testing.assert_array_equal(index.bound_column, kappa.astype(np.float32))
        own = kappa * np.log1p(products.T / kappa) + index.log_normalizer
        np.testing.assert_allclose(own, score, rtol=1e-12, atol=1e-12)
        assert (index.query_vectors(images) @ index.vectors.T >= score).all()
    else:
        assert index.bound_column is None
        np.testing.assert_allclose(products.T + index.log_normalizer, score, rtol=1e-12, atol=1e-7)
    plain, corrected = make("images", law)[0], make("corrected images", law)[0]
    assert plain.bound_column is None
    np.testing.assert_array_equal(corrected.bound_column, corrected.evidence)


@pytest.mark.parametrize(
    ("rows", "k", "message"),
    [
        ([[0, 1], [1, 5]], 1, "names row 5 for query 1, but the index holds rows 0 to 4"),
        ([[0, 1], [-1, 2]], 1, "names row -1 for query 1, .* fill up with -1"),
        ([[0, 1], [3, 3]], 1, "names row 3 more than once for query 1"),
        ([[0, 1]], 1, r"has shape \(1, 2\), but must have \(2, candidates\)"),
        ([0, 1], 1, r"has shape \(2,\)"),
        ([[], []], 1, r"has shape \(2, 0\)"),
        ([[0.0, 1.0], [1.0, 2.0]], 1, "are float64, but must be integers"),
        ([[0, 1], [1, 2]], 3, "k is 3, but there are 2 candidates"),
        ([[0, 1], [1, 2]], 0, "k is 0"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_candidates_are_refused(kind, rows, k, message):
    index, queries = make(kind, "vmf", rows=5, queries=2)
    with pytest.raises(ValueError, match=message):
        index.refine(queries, rows, k)


def test_other_arguments_are_checked_as_by_search():
    index, queries = make("corrected images", "vmf", rows=5, queries=2)
    for arguments, message in (({"batch_size": 0}, "batch_size is 0"), ({"prior": 1.0}, "prior is 1.0")):
        with pytest.raises(ValueError, match=message):
            index.refine(queries, [[0, 1], [1, 2]], 1, **arguments)
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        index.refine(torch.ones(2, 3), [[0, 1], [1, 2]], 1)
