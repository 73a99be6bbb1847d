"""Typicality against an explicit inverse covariance, and its p-values on fresh draws."""

import numpy as np
import pytest
import torch

from modeling_asymvlm.calibration import typicality
from modeling_asymvlm.calibration.typicality import RIDGE, Typicality


DIM = 12


def captions(seed: int, count: int) -> torch.Tensor:
    """Directions of a Gaussian that is narrow in half of its dimensions, at random lengths."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.cat([torch.full((DIM // 2,), 1.0), torch.full((DIM // 2,), 0.1)])
    features = spread * torch.randn(count, DIM, generator=generator) + torch.eye(DIM)[0] * 2
    return features * (1 + 9 * torch.rand(count, 1, generator=generator))


@pytest.fixture(scope="module")
def typical() -> Typicality:
    return Typicality.fit(captions(0, 1500), captions(1, 2000))


def brute_force(training: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    units, asked = (each.double().numpy() for each in (training, texts))
    units, asked = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (units, asked))
    inverse = np.linalg.inv(np.cov(units.T, bias=True) + RIDGE * np.eye(units.shape[1]))
    difference = asked - units.mean(axis=0)
    return np.einsum("td,de,te->t", difference, inverse, difference)


def test_distances_are_those_of_the_inverse_covariance(typical):
    texts = captions(2, 50)
    np.testing.assert_allclose(typical.distance(texts), brute_force(captions(0, 1500), texts), rtol=1e-3)
    np.testing.assert_allclose(
        typical.distances, np.sort(brute_force(captions(0, 1500), captions(1, 2000))), rtol=1e-3
    )


def test_p_values_are_ranks_among_the_held_out_captions(typical):
    texts = captions(3, 200)
    held_out, distances = typical.distances.numpy(), typical.distance(texts).numpy()
    expected = [(1 + np.sum(held_out >= distance)) / (1 + len(held_out)) for distance in distances]
    np.testing.assert_allclose(typical.p_value(texts), expected, rtol=1e-12)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2, 0.5])
def test_p_values_of_fresh_captions_are_uniform(typical, level):
    count = 4000
    share = float((typical.p_value(captions(4, count)) <= level).double().mean())
    # Both the fresh and the held-out captions are draws.
    standard_error = np.sqrt(level * (1 - level) * (1 / count + 1 / len(typical.distances)))
    assert abs(share - level) < 3 * standard_error


def test_far_texts_have_small_p_values(typical):
    far = torch.randn(100, DIM, generator=torch.Generator().manual_seed(5))
    assert typical.p_value(far).median() < 0.005
    assert typical.p_value(-captions(6, 100)).median() < 0.05
    assert typical.p_value(torch.eye(DIM)[-1:]).item() == 1 / (1 + len(typical.distances))
    assert typical.p_value(far).min() >= 1 / (1 + len(typical.distances))


def test_lengths_of_features_do_not_matter(typical):
    texts = captions(7, 100)
    lengths = torch.logspace(-3, 3, 100)[:, None]
    np.testing.assert_allclose(typical.distance(texts * lengths), typical.distance(texts), rtol=1e-3)
    other = Typicality.fit(captions(0, 1500) * 7.0, captions(1, 2000) * 0.1)
    np.testing.assert_allclose(other.distance(texts), typical.distance(texts), rtol=1e-3)


def test_features_of_fewer_captions_than_dimensions_are_fitted():
    few = Typicality.fit(captions(8, 5), captions(9, 20))
    assert torch.isfinite(few.distances).all() and ((few.p_value(captions(10, 9)) > 0).all())


def test_many_held_out_captions_are_kept_as_evenly_spaced_ranks(typical, monkeypatch):
    monkeypatch.setattr(typicality, "MAX_QUANTILES", 101)
    thinned = Typicality.fit(captions(0, 1500), captions(1, 2000))
    assert len(thinned.distances) == 101
    assert thinned.distances[0] == typical.distances[0] and thinned.distances[-1] == typical.distances[-1]
    texts = captions(11, 300)
    assert (thinned.p_value(texts) - typical.p_value(texts)).abs().max() < 0.02
