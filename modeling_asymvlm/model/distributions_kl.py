"""Kullback-Leibler divergences between directional laws, as functions of their parameters, in nats.

A pair of mean directions enters as `separation = 1 - mu_1'mu_2 = ‖mu_1 - mu_2‖² / 2`, which keeps its digits where the
directions nearly agree. `K_d` and the divergence about the same direction come from `relative_entropy.py`; with
`A_d(kappa)` the mean resultant length of von Mises-Fisher and `kappa/(kappa+d-1)` that of Power Spherical,

    KL(vMF_1 ‖ vMF_2) = KL about the same direction + kappa_2 A_d(kappa_1) separation
    KL(PS_1 ‖ vMF_2)  = K_d(PS_1) - K_d(vMF_2) + kappa_2 (A_d(kappa_2) - w_1) + kappa_2 w_1 separation
    KL(PS_1 ‖ PS_2)   = KL about the same direction + kappa_2 S

where `S = E_1[ln(1 + mu_1'x) - ln(1 + mu_2'x)]` has no elementary form. Expanding `ln(1 + mu'x)` in the Gegenbauer
polynomials P_n of the sphere, normalised to P_n(1) = 1, and taking means under PS_1 (Funk-Hecke, DLMF 18.18),

    S = sum_{n>=1} c_n lambda_n (1 - P_n(mu_1'mu_2)),   c_n = (-1)^(n-1) (1/n + 1/(n+d-2)),
    lambda_n = prod_{j<n} (kappa_1 - j) / (kappa_1 + d-1 + j)

It ends at n = kappa_1 for an integer kappa_1. From n > kappa_1 on, all c_n lambda_n have the same sign. Their sum is
known: `sum_n c_n lambda_n = E_1[ln(1+t)] - E_uniform[ln(1+t)]`.
"""

import torch

from .distributions_entropy import (
    power_spherical_concentration_divergence,
    power_spherical_relative_entropy,
    vmf_concentration_divergence,
    vmf_mean_one_minus_cosine,
    vmf_relative_entropy,
)
from .log_normalizers import power_spherical_mean_log1p_cosine, vmf_mean_resultant_length


MAX_TERMS = 4096
CHECK_EVERY = 16  # terms, since a check waits for the device


def vmf_from_vmf(first: torch.Tensor, second: torch.Tensor, separation: torch.Tensor, dim: int) -> torch.Tensor:
    """KL(von Mises-Fisher ‖ von Mises-Fisher) of concentrations `first` and `second`."""
    length = vmf_mean_resultant_length(first, dim)
    return vmf_concentration_divergence(first, second, dim) + second * length * separation


def power_spherical_from_vmf(
    first: torch.Tensor, second: torch.Tensor, separation: torch.Tensor, dim: int
) -> torch.Tensor:
    """KL(Power Spherical ‖ von Mises-Fisher) of concentrations `first` and `second`."""
    first_length, second_length = first / (first + dim - 1), vmf_mean_resultant_length(second, dim)
    one_minus_first = (dim - 1) / (first + dim - 1)
    excess = torch.where(
        second_length < 0.5,
        second_length - first_length,
        one_minus_first - vmf_mean_one_minus_cosine(second, dim),
    )
    entropies = power_spherical_relative_entropy(first, dim) - vmf_relative_entropy(second, dim)
    return entropies + second * excess + second * first_length * separation


def power_spherical_from_power_spherical(
    first: torch.Tensor, second: torch.Tensor, separation: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    KL(Power Spherical ‖ Power Spherical) of concentrations `first` and `second`, and a bound on the truncation error.

    The series is summed until the bound is below the rounding of the sum, and to at most `MAX_TERMS` terms. With
    `a_n = |c_n lambda_n|`, kappa the first concentration and N terms, the remainder is at most twice

        T = a_{N+1} (N + kappa + d-1) / (2 kappa + d-2)          for N >= kappa,
        T = a_{N+1} (2 + (N + kappa + d) / (2N + d+1))           for N < kappa

    (the sum of `|lambda_n|` beyond kappa telescopes; before, terms fall at least geometrically). For N >= kappa, the
    known sum of the remaining coefficients may be added, and what is left, `sum_{n>N} a_n P_n`, is at most
    `2 a_{N+1} / separation` by partial summation of Laplace's integral for P_n (DLMF 18.10.4); the smaller bound is
    used. For d >= 3 rounding is reached, save below kappa = 1/2; on the circle with a small concentration, the bound
    decreases as `N^(-2 kappa - 2) / separation`.

    Returns:
        The divergence and the bound on its error, in nats, both of the broadcast shape. The bound carries no gradient.
    """
    kappa, second, separation = torch.broadcast_tensors(first, second, separation)
    eps = torch.finfo(kappa.dtype).eps
    mean, partial_sum = torch.zeros_like(kappa), torch.zeros_like(kappa)
    moment = kappa / (kappa + dim - 1)
    # One minus P_{n-1} and P_n, by the recurrence DLMF 18.9.1 in this variable.
    before, current = torch.zeros_like(kappa), separation
    for n in range(1, MAX_TERMS + 1):
        term = (1 / n + 1 / (n + dim - 2)) * (-1) ** (n - 1) * moment
        mean = mean + term * current
        partial_sum = partial_sum + term
        ahead = (2 * n + dim - 2) * (current + separation * (1 - current)) - n * before
        before, current = current, ahead / (n + dim - 2)
        moment = moment * ((kappa - n) / (kappa + (dim - 1 + n)))
        if n % CHECK_EVERY == 0:
            bound, completed = _remainder_bound(n, kappa, moment, separation, dim)
            if bool((bound <= eps * mean.abs()).all()):
                break
    known_sum = power_spherical_mean_log1p_cosine(kappa, dim)
    known_sum = known_sum - power_spherical_mean_log1p_cosine(torch.zeros_like(kappa), dim)
    mean = torch.where(completed, mean + (known_sum - partial_sum), mean)
    return power_spherical_concentration_divergence(kappa, second, dim) + second * mean, second.detach() * bound


@torch.no_grad()
def _remainder_bound(
    n: int, kappa: torch.Tensor, next_moment: torch.Tensor, separation: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bound after n terms, and where it supposes that the known sum of the other coefficients is added."""
    next_term = (1 / (n + 1) + 1 / (n + dim - 1)) * next_moment.abs()
    past = n >= kappa
    beyond = (n + kappa + dim - 1) / (2 * kappa + (dim - 2)).clamp(min=torch.finfo(kappa.dtype).tiny)
    tail = torch.where(past, beyond, 2 + (n + kappa + dim) / (2 * n + dim + 1))
    plain = torch.where(next_term > 0, 2 * next_term * tail, 0.0)
    plain = torch.where(separation > 0, plain, 0.0)
    completed = torch.where(past & (separation > 0), 2 * next_term / separation, torch.inf)
    return torch.minimum(plain, completed), completed < plain


__all__ = ["power_spherical_from_power_spherical", "power_spherical_from_vmf", "vmf_from_vmf"]
