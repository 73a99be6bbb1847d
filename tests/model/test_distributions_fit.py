"""Maximum likelihood: the score vanishes, and the errors against the truth are those of the Cramér-Rao bound."""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from modeling_asymvlm.model.distributions import PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.distributions_entropy import power_spherical_log_variance, vmf_cosine_variance


LAWS = (VonMisesFisher, PowerSpherical)
# Law, dimension, concentration, replicates, samples of each.
EFFICIENCY_CASES = [
    (law, *case)
    for law in LAWS
    for case in (
        (2, 3.0, 300, 400),
        (2, 1e5, 300, 400),
        (3, 0.8, 300, 400),
        (3, 50.0, 300, 400),
        (8, 10.0, 100, 1000),
        (512, 600.0, 2, 15_000),
    )
]
# Each of the 24 statistics would leave its interval by chance with probability 1e-5, had the seeds not been fixed.
LEVEL = 1e-5
double = {"dtype": torch.float64}
every_law = pytest.mark.parametrize("law", LAWS)
every_dim = pytest.mark.parametrize("dim", [2, 3, 8, 512])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def information(law, concentration: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher information of one sample on the concentration and on each coordinate of the direction."""
    if law is VonMisesFisher:
        length = law(torch.eye(dim, **double)[0], concentration).mean_resultant_length
        return vmf_cosine_variance(concentration, dim), concentration * length
    # Across the direction: kappa^2 E[(1-t)/(1+t)] / (d-1), by the moments of the Beta law of (1+t)/2.
    return power_spherical_log_variance(concentration, dim), concentration**2 / (2 * concentration + dim - 3)


@pytest.mark.parametrize("index", range(len(EFFICIENCY_CASES)))
def test_errors_are_those_of_the_cramer_rao_bound(index):
    """Squared errors over the bound are chi-squared: the estimate neither loses information nor fakes any."""
    law, dim, concentration, replicates, n = EFFICIENCY_CASES[index]
    loc = F.normalize(torch.randn(replicates, dim, generator=seeded(100 + index), **double), dim=-1)
    truth = law(loc.float() if dim > 100 else loc, concentration)
    fitted = law.fit(truth.sample((n,), generator=seeded(200 + index)))
    on_concentration, on_direction = information(law, torch.tensor(concentration, **double), dim)
    errors = (fitted.concentration.double() - concentration) * (n * on_concentration).sqrt()
    # In 512 dimensions, the known bias of order 1/n of the concentration is about an eighth of its standard error.
    assert LEVEL < scipy.stats.chi2.sf(errors.square().sum().item(), replicates) < 1 - LEVEL
    cosine = (fitted.loc.double() * F.normalize(truth.loc.double(), dim=-1)).sum(-1, keepdim=True)
    across = fitted.loc.double() / cosine - F.normalize(truth.loc.double(), dim=-1)
    statistic = (n * on_direction * across.square().sum()).item()
    assert LEVEL < scipy.stats.chi2.sf(statistic, replicates * (dim - 1)) < 1 - LEVEL


@every_dim
@every_law
@pytest.mark.parametrize("concentration", [0.7, 5.0, 900.0])
def test_no_neighbour_is_more_likely(law, dim, concentration):
    truth = law(F.normalize(torch.randn(2, dim, generator=seeded(300 + dim), **double), dim=-1), concentration)
    samples = truth.sample((200,), generator=seeded(400 + dim))
    weights = torch.rand(200, 2, generator=seeded(500 + dim), **double)
    fitted = law.fit(samples, weights)
    assert fitted.batch_shape == (2,)

    def likelihood(raw, concentration):
        return (weights * law(F.normalize(raw, dim=-1), concentration).log_prob(samples)).sum(0)

    best = likelihood(fitted.loc, fitted.concentration)
    assert torch.all(best >= likelihood(truth.loc, truth.concentration))
    for seed in range(5):
        turned = fitted.loc + 1e-3 * torch.randn(2, dim, generator=seeded(600 + seed), **double) / dim**0.5
        for factor in (0.999, 1.0, 1.001):
            assert torch.all(best >= likelihood(turned, factor * fitted.concentration) - 1e-9)
    if law is VonMisesFisher:  # the mean of the fitted law is the mean of the samples
        mean = (weights[..., None] * samples).sum(0) / weights.sum(0)[:, None]
        torch.testing.assert_close(fitted.mean, mean, rtol=1e-11, atol=1e-13)


@every_law
def test_weights_count_samples(law):
    samples = law(torch.tensor([0.0, 1.0, 0.0], **double), 6.0).sample((60,), generator=seeded(1))
    counts = torch.arange(60) % 3
    repeated, weighted = law.fit(samples.repeat_interleave(counts, 0)), law.fit(samples, 7.0 * counts)
    torch.testing.assert_close(repeated.loc, weighted.loc, rtol=0, atol=1e-9)
    torch.testing.assert_close(repeated.concentration, weighted.concentration, rtol=1e-9, atol=0)


@every_dim
@every_law
def test_float32_samples_of_a_large_concentration(law, dim):
    """The cosines differ from one by less than a hundred roundings."""
    samples = law(F.normalize(torch.ones(dim), dim=0), 1e5).sample((500,), generator=seeded(700 + dim))
    in_double = law.fit(F.normalize(samples.double(), dim=-1))
    assert law.fit(samples).concentration.item() == pytest.approx(in_double.concentration.item(), rel=1e-3)


@every_law
def test_samples_without_a_direction(law):
    fitted = law.fit(torch.cat([torch.eye(3), -torch.eye(3)]))
    assert fitted.concentration.item() == pytest.approx(0, abs=1e-6)


@every_law
def test_unsuitable_samples_are_refused(law):
    same = torch.eye(3)[:1].expand(5, 3)
    with pytest.raises(ValueError, match="all coincide"):
        law.fit(same)
    with pytest.raises(ValueError, match="length one; normalise"):
        law.fit(2 * torch.eye(3))
    with pytest.raises(ValueError, match=r"shape \(n, \*batch, d\)"):
        law.fit(torch.eye(3)[0])
    with pytest.raises(TypeError, match="float32 or float64, got torch.bfloat16"):
        law.fit(torch.eye(3).bfloat16())
    with pytest.raises(ValueError, match=r"weights must have shape \(3,\)"):
        law.fit(torch.eye(3), torch.ones(2))
    for weights in (torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3), torch.full((3,), torch.nan)):
        with pytest.raises(ValueError, match="weights must be finite and non-negative"):
            law.fit(torch.eye(3), weights)
