"""Inclusion and divergence against sampling, quadrature and what they must be at the ends."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


pytest.importorskip("scipy")

from scipy import integrate, special  # noqa: E402

from modeling_asymvlm.model.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from modeling_asymvlm.texts import entailment as module
from modeling_asymvlm.texts.entailment import entailment_score, entails, inclusion_probability


LAWS = (VonMisesFisher, PowerSpherical)


def direction(dim: int, cosine: float) -> torch.Tensor:
    """A unit vector at a given cosine to the first axis."""
    vector = torch.zeros(dim, dtype=torch.float64)
    vector[0], vector[1] = cosine, (1 - cosine**2) ** 0.5
    return vector


def pair(law, dim: int, cosine: float, specific: float, general: float):
    concentrations = torch.tensor(specific, dtype=torch.float64), torch.tensor(general, dtype=torch.float64)
    return law(direction(dim, cosine), concentrations[0]), law(direction(dim, 1.0), concentrations[1])


def edge_by_quadrature(law, dim: int, concentration: float, level: float) -> float:
    """The cosine that the share `level` of the law exceeds, by bisection on adaptive quadrature."""

    def density(angle):
        tilt = (
            np.exp(concentration * (np.cos(angle) - 1))
            if law is VonMisesFisher
            else np.cos(angle / 2) ** (2 * concentration)
        )
        return tilt * np.sin(angle) ** (dim - 2)

    total = integrate.quad(density, 0, np.pi, limit=500, epsabs=1e-14)[0]
    low, high = 0.0, np.pi
    for _ in range(60):
        middle = (low + high) / 2
        inside = integrate.quad(density, 0, middle, limit=500, epsabs=1e-14)[0]
        low, high = (middle, high) if inside < level * total else (low, middle)
    return float(np.cos(low))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("dim", "cosine", "specific", "general"),
    [(3, 0.8, 20.0, 5.0), (8, 0.5, 30.0, 8.0), (64, 0.7, 40.0, 20.0), (64, -0.2, 40.0, 3.0), (512, 0.6, 300.0, 90.0)],
)
def test_inclusion_is_the_share_of_samples_in_the_region(law, dim, cosine, specific, general):
    first, second = pair(law, dim, cosine, specific, general)
    edge = edge_by_quadrature(law, dim, general, 0.8)
    torch.manual_seed(dim + round(100 * cosine))
    inside = (first.sample((40_000,)) @ second.loc >= edge).double()
    found = inclusion_probability(first, second, level=0.8).item()
    assert abs(found - inside.mean().item()) < 4 * (inside.var().item() / len(inside)) ** 0.5 + 1e-6


@pytest.mark.parametrize("dim", [8, 64, 512])
def test_about_one_direction_inclusion_is_an_incomplete_beta_function(dim):
    first, second = pair(PowerSpherical, dim, 1.0, 60.0, 20.0)
    half = (dim - 1) / 2
    for level in (0.05, 0.5, 0.99):
        edge = special.betaincinv(half + 20.0, half, 1 - level)
        expected = 1 - special.betainc(half + 60.0, half, edge)
        assert inclusion_probability(first, second, level=level).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dim", [3, 16, 512])
@pytest.mark.parametrize("concentration", [0.0, 0.5, 20.0, 2000.0])
def test_a_law_includes_itself_at_the_level(law, dim, concentration):
    generator = torch.Generator().manual_seed(dim)
    same = law(F.normalize(torch.randn(dim, generator=generator), dim=-1), torch.tensor(concentration))
    for level in (0.1, 0.9):
        assert inclusion_probability(same, same, level=level).item() == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("law", LAWS)
def test_inclusion_grows_as_directions_agree_and_as_the_general_one_widens(law):
    cosines = [-0.9, 0.0, 0.5, 0.8, 0.95, 1.0]
    by_direction = [inclusion_probability(*pair(law, 64, cosine, 60.0, 20.0)).item() for cosine in cosines]
    assert by_direction == sorted(by_direction) and by_direction[0] < 0.01 < 0.99 < by_direction[-1]
    by_width = [
        inclusion_probability(*pair(law, 64, 0.8, 60.0, general)).item() for general in (60.0, 40.0, 20.0, 5.0)
    ]
    assert by_width == sorted(by_width)


@pytest.mark.parametrize("law", LAWS)
def test_the_divergence_score_is_the_mean_log_likelihood_ratio(law):
    first, second = pair(law, 16, 0.7, 40.0, 12.0)
    torch.manual_seed(0)
    samples = first.sample((20_000,))
    ratios = second.log_prob(samples) - HypersphericalUniform(16).log_prob(samples.float())
    found = entailment_score(first, second, method="divergence").item()
    assert abs(found - ratios.mean().item()) < 4 * ratios.std().item() / len(ratios) ** 0.5
    expected = kl_divergence(first, HypersphericalUniform(16)) - kl_divergence(first, second)
    assert found == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["divergence", "inclusion"])
def test_verdicts_of_a_batch(law, method):
    specific = law(torch.stack([direction(64, cosine) for cosine in (0.95, 0.0, -0.5)]), torch.tensor(60.0))
    general = law(direction(64, 1.0), torch.tensor(20.0))
    assert entails(specific, general, method=method).tolist() == [True, False, False]
    alone = [entailment_score(law(loc, torch.tensor(60.0)), general, method=method).item() for loc in specific.loc]
    torch.testing.assert_close(entailment_score(specific, general, method=method), torch.tensor(alone).double())
    matrix = entailment_score(specific.expand((2, 3)), general, method=method)
    assert matrix.shape == (2, 3) and matrix.dtype == torch.float64


def drawn(law, shape: tuple[int, ...], dim: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    loc = F.normalize(torch.randn(*shape, dim, generator=generator), dim=-1)
    return law(loc, 60 * torch.rand(shape, generator=generator))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["divergence", "inclusion"])
@pytest.mark.parametrize(
    ("first_shape", "second_shape"), [((4, 1), (5,)), ((3,), ()), ((2, 1, 3), (2, 1)), ((), ()), ((0, 1), (3,))]
)
def test_pairs_in_tiles_score_as_each_pair_alone(law, method, first_shape, second_shape, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 7)
    first, second = drawn(law, first_shape, 16, seed=1), drawn(law, second_shape, 16, seed=2)
    found = entailment_score(first, second, method=method)
    assert found.shape == torch.broadcast_shapes(first_shape, second_shape)
    first, second = first.expand(found.shape), second.expand(found.shape)
    for place in np.ndindex(found.shape):
        one, two = (law(laws.loc[place], laws.concentration[place]) for laws in (first, second))
        alone = entailment_score(one, two, method=method)
        torch.testing.assert_close(found[place], alone, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of bytes of the largest tensor that torch makes meanwhile."""

    num_bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["divergence", "inclusion"])
def test_no_tensor_is_larger_than_a_tile_of_pairs(law, method, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 72)
    first, second = drawn(law, (24, 1), 16, seed=3), drawn(law, (30,), 16, seed=4)
    with Largest() as largest:
        scores = entailment_score(first, second, method=method)
    assert scores.nbytes <= largest.num_bytes <= 72 * 16 * 8 < 24 * 30 * 16 * 8


def test_the_general_text_does_not_entail_the_specific_one():
    specific, general = pair(PowerSpherical, 64, 0.9, 60.0, 20.0)
    assert entails(specific, general) and not entails(general, specific)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["divergence", "inclusion"])
def test_a_text_entails_itself(law, method):
    loc = F.normalize(torch.randn(20, 64, generator=torch.Generator().manual_seed(5)), dim=-1)
    texts = law(loc, torch.linspace(0, 80, 20))
    assert entails(texts, texts, method=method).all()


def test_what_cannot_be_compared_is_refused():
    first, second = pair(VonMisesFisher, 8, 0.5, 10.0, 5.0)
    with pytest.raises(ValueError, match="Unknown method 'cosine': choose one of divergence, inclusion"):
        entails(first, second, method="cosine")
    with pytest.raises(TypeError, match="got VonMisesFisher and PowerSpherical"):
        entails(first, PowerSpherical(second.loc, second.concentration))
    for level in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            entails(first, second, level=level)
    flat = pair(VonMisesFisher, 2, 0.5, 10.0, 5.0)
    with pytest.raises(ValueError, match="dimension 3 or more, got 2 and 2"):
        entails(*flat)
