"""Near-duplicates and divergences against brute force over all pairs, in float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode


pytest.importorskip("scipy")

from scipy.sparse.csgraph import connected_components  # noqa: E402

from modeling_asymvlm.model.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from modeling_asymvlm.texts import near_duplicates as module
from modeling_asymvlm.texts.divergences import directional_divergence, relative_divergence, symmetric_divergence
from modeling_asymvlm.texts.near_duplicates import near_duplicates


LAWS = (VonMisesFisher, PowerSpherical)


def draw(law, seed: int, num_texts: int, dim: int, low: float, high: float, spread: float):
    """Texts in clusters of like direction and concentration."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_texts // 5, dim, generator=generator)
    of_text = torch.randint(len(centres), (num_texts,), generator=generator)
    loc = F.normalize(centres[of_text] + spread * torch.randn(num_texts, dim, generator=generator), dim=1)
    centre_kappa = low + (high - low) * torch.rand(len(centres), generator=generator)
    kappa = centre_kappa[of_text] * (1 + spread * torch.rand(num_texts, generator=generator))
    return law(loc, kappa)


def brute_force(texts) -> np.ndarray:
    """Relative divergence of every pair, from torch's own kl_divergence."""
    loc, kappa = F.normalize(texts.loc.double(), dim=-1), texts.concentration.double()
    first = type(texts)(loc[:, None], kappa[:, None], validate_args=False)
    second = type(texts)(loc[None], kappa[None], validate_args=False)
    said = kl_divergence(type(texts)(loc, kappa, validate_args=False), HypersphericalUniform(texts.dim))
    both = kl_divergence(first, second) + kl_divergence(second, first)
    return (both / (said[:, None] + said)).numpy()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("kappas", "spread"), [((1.0, 8.0), 0.15), ((5.0, 60.0), 0.12), ((300.0, 3000.0), 0.03)])
@pytest.mark.parametrize("tile", [23, 2048])
def test_pairs_and_groups_are_those_of_brute_force(law, kappas, spread, tile, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 100)
    threshold = 0.05
    texts = draw(law, round(kappas[1]), 150, 24, *kappas, spread)
    divergence = brute_force(texts)
    np.fill_diagonal(divergence, np.inf)
    close = divergence <= threshold
    assert 20 < close.sum() < 4000 and not close.all(axis=1).any()
    found = near_duplicates(texts, threshold, tile=tile)
    assert (found.nearest >= 0).tolist() == close.any(axis=1).tolist()
    has = np.flatnonzero(close.any(axis=1))
    np.testing.assert_allclose(found.divergence[has], divergence[has].min(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.nearest[has], divergence[has].argmin(axis=1))
    assert np.isinf(found.divergence[~close.any(axis=1)]).all()
    _, component = connected_components(close)
    expected = np.array([np.flatnonzero(component == own)[0] for own in component])
    np.testing.assert_array_equal(found.group, expected)


class MatrixProducts(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is torch.ops.aten.mm.default
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("law", LAWS)
def test_few_pairs_are_candidates_and_far_tiles_are_skipped(law, monkeypatch):
    seen = []
    original = module.relative_divergence

    def counted(first, second):
        seen.append(len(first.concentration))
        return original(first, second)

    monkeypatch.setattr(module, "relative_divergence", counted)
    texts = draw(law, 3, 300, 24, 5.0, 60.0, spread=0.1)
    with MatrixProducts() as products:
        near_duplicates(texts, 0.05, tile=50)
    close = brute_force(texts) <= 0.05
    num_close = close[np.triu_indices(300, 1)].sum()
    assert num_close > 100 and num_close <= sum(seen) <= 1.2 * num_close
    order = np.argsort(texts.concentration.numpy(), kind="stable")
    needed = np.triu(close[np.ix_(order, order)].reshape(6, 50, 6, 50).any(axis=(1, 3))).sum()
    assert needed <= products.count <= 15 < 21  # of the 21 tiles on and above the diagonal


@pytest.mark.parametrize("law", LAWS)
def test_equal_texts_and_texts_that_say_nothing_are_duplicates(law):
    loc = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    texts = law(loc[[0, 1, 0, 2, 1]], torch.tensor([5.0, 0.0, 5.0, 5.0, 0.0]))
    found = near_duplicates(texts, 0.0)
    assert found.nearest.tolist() == [2, 4, 0, -1, 1]
    assert found.group.tolist() == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("law", LAWS)
def test_divergences_at_the_ends(law):
    loc = F.normalize(torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    text, nothing = law(loc[0], torch.tensor(20.0).double()), law(loc[1], torch.tensor(0.0).double())
    assert relative_divergence(text, text).item() == 0
    assert relative_divergence(nothing, nothing).item() == 0
    assert relative_divergence(text, nothing).item() == pytest.approx(2, abs=0.05)
    other = law(loc[1], torch.tensor(20.0).double())
    assert relative_divergence(text, other).item() == pytest.approx(2 * (1 - (loc[0] @ loc[1]).item()), abs=0.1)
    for one, two in itertools.permutations((text, other, nothing), 2):
        forward, backward = symmetric_divergence(one, two), symmetric_divergence(two, one)
        assert forward.item() == pytest.approx(backward.item(), rel=1e-12)
    assert directional_divergence(text, nothing).item() == pytest.approx(0, abs=1e-12)
    aligned = law(loc[0], torch.tensor(3.0).double())
    assert directional_divergence(text, aligned).item() == 0


def test_directional_divergence_of_von_mises_fisher_is_its_closed_form():
    loc = F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    one = VonMisesFisher(loc[0], torch.tensor(30.0).double())
    two = VonMisesFisher(loc[1], torch.tensor(7.0).double())
    crossed = 30 * two.mean_resultant_length + 7 * one.mean_resultant_length
    expected = crossed * (1 - loc[0] @ loc[1]) / 2
    assert directional_divergence(one, two).item() == pytest.approx(expected.item(), rel=1e-10)
