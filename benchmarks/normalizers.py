"""Errors of the log-normalisers and their derivatives against 40-digit arithmetic, beside those of other expressions.

    python -m benchmarks.normalizers

Each figure is the largest over 18 dimensions from 2 to 8192 and 41 concentrations from 0 to 1e5, none of them used in
the tests but 0 and the ends. Errors are relative: to the exact number for von Mises-Fisher, and for Power Spherical,
whose value and first derivative cross zero, to no less than 1e-3 and 1e-2. Normalisers are relative to the uniform
density: of expressions that give absolute ones, their own value at concentration 0 is subtracted, or for scipy, which
refuses concentration 0, the exact one. The exit status is 1 if a bound is exceeded.
"""

import functools
import math
import sys
import warnings

import mpmath
import scipy.stats
import torch

from modeling_asymvlm.model.log_normalizers import (
    power_spherical_log_normalizer,
    uniform_log_density,
    vmf_log_normalizer,
)


DIMS = (2, 3, 6, 7, 13, 24, 28, 37, 50, 88, 150, 290, 448, 640, 1000, 1536, 3072, 8192)
CONCENTRATIONS = (0.0, *(1.7e-4 * (1e5 / 1.7e-4) ** (i / 39) for i in range(40)))
DIGITS = 40
# Largest error allowed in the value, first and second derivative.
BOUNDS = {
    ("von Mises-Fisher", "float64"): (1e-12, 1e-12, 1e-9),
    ("von Mises-Fisher", "float32"): (1e-6, 1e-6, math.inf),
    ("Power Spherical", "float64"): (1e-12, 1e-12, 1e-9),
    ("Power Spherical", "float32"): (3e-6, 3e-6, math.inf),
}
FLOORS = {"von Mises-Fisher": (0.0, 0.0, 0.0), "Power Spherical": (1e-3, 1e-2, 0.0)}


def exact_vmf(kappa: float, dim: int) -> tuple:
    """
    From the power series 0F1(; b; kappa^2/4) = sum_k w_k, whose terms are positive: minus its logarithm, and by the
    mean m and variance s of k under the weights w_k, `-2m/kappa` and `-(4s - 2m)/kappa^2`. Terms are summed outwards
    from the largest, relative to it.
    """
    k, b = mpmath.mpf(kappa), mpmath.mpf(dim) / 2
    if kappa == 0:
        return mpmath.mpf(0), mpmath.mpf(0), -1 / (2 * b)
    x = k * k / 4
    peak = max(0, int(mpmath.floor((1 - b + mpmath.sqrt((1 - b) ** 2 + 4 * x)) / 2)))
    sums = [mpmath.mpf(0)] * 3
    for direction in (1, -1):
        i, term = peak, mpmath.mpf(1)
        while i >= 0 and term * (1 + (i - peak) ** 2) > mpmath.mpf(10) ** -(DIGITS + 15):
            if i != peak or direction == 1:
                sums = [total + term * (i - peak) ** n for n, total in enumerate(sums)]
            term = term * x / ((b + i) * (i + 1)) if direction == 1 else term * ((b + i - 1) * i) / x
            i += direction
    log_peak = peak * mpmath.log(x) - mpmath.loggamma(b + peak) + mpmath.loggamma(b) - mpmath.loggamma(peak + 1)
    offset = sums[1] / sums[0]
    variance, mean = sums[2] / sums[0] - offset**2, peak + offset
    return -log_peak - mpmath.log(sums[0]), -2 * mean / k, -(4 * variance - 2 * mean) / k**2


def exact_power_spherical(kappa: float, dim: int) -> tuple:
    k, b = mpmath.mpf(kappa), mpmath.mpf(dim - 1) / 2
    value = mpmath.loggamma(2 * b + k) - mpmath.loggamma(b + k) + mpmath.loggamma(b) - mpmath.loggamma(2 * b)
    slope = mpmath.psi(0, 2 * b + k) - mpmath.psi(0, b + k) - mpmath.log(2)
    return value - k * mpmath.log(2), slope, mpmath.psi(1, 2 * b + k) - mpmath.psi(1, b + k)


@functools.cache
def exact(law: str, dim: int) -> list[tuple]:
    function = exact_vmf if law == "von Mises-Fisher" else exact_power_spherical
    with mpmath.workdps(DIGITS + 20):
        return [function(kappa, dim) for kappa in torch.tensor(CONCENTRATIONS).tolist()]


def reference(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    """F_d as published with AsymVLM (Ju et al. 2025), relative to its value at 0."""

    def printed(kappa):
        b = (dim - 1) / 2
        roots = [torch.sqrt(a**2 + kappa**2) for a in (b, b + 1)]
        return sum(b * torch.log(b + root) - root for root in roots) / 2

    return printed(kappa) - printed(torch.zeros_like(kappa))


def log_gamma(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    """The Power Spherical normaliser as printed by De Cao & Aziz (2020), relative to its value at 0."""

    def printed(kappa):
        b = (dim - 1) / 2
        log_2, log_pi = math.log(2), math.log(math.pi)
        return torch.lgamma(2 * b + kappa) - torch.lgamma(b + kappa) - (2 * b + kappa) * log_2 - b * log_pi

    return printed(kappa) - printed(torch.zeros_like(kappa))


def of_scipy(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    loc = torch.zeros(dim, dtype=torch.float64)
    loc[0] = 1
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for k in kappa.tolist():
            if k == 0:  # refused
                values.append(math.nan)
                continue
            values.append(float(scipy.stats.vonmises_fisher(loc.numpy(), k).logpdf(loc.numpy())) - k)
    return torch.tensor(values, dtype=torch.float64) - uniform_log_density(dim)


ROWS = (
    ("von Mises-Fisher", "modeling_asymvlm", vmf_log_normalizer, ("float64", "float32")),
    ("von Mises-Fisher", "reference F_d", reference, ("float64", "float32")),
    ("von Mises-Fisher", "scipy.stats", of_scipy, ("float64",)),
    ("Power Spherical", "modeling_asymvlm", power_spherical_log_normalizer, ("float64", "float32")),
    ("Power Spherical", "lgamma form", log_gamma, ("float64", "float32")),
)


def derivatives(function, kappa: torch.Tensor, dim: int) -> list[torch.Tensor]:
    """Value, first and second derivative; the value alone of a function without gradient."""
    kappa = kappa.clone().requires_grad_()
    orders = [function(kappa, dim)]
    while len(orders) < 3 and orders[-1].requires_grad:
        orders.append(torch.autograd.grad(orders[-1].sum(), kappa, create_graph=True)[0])
    return orders


def worst_errors(law: str, function, dtype: str) -> tuple[list[float], int]:
    """Largest error of each order and the number of values that are not finite, which count for no error."""
    worst = [0.0, 0.0, 0.0]
    overflows = 0
    for dim in DIMS:
        kappa = torch.tensor(CONCENTRATIONS).to(getattr(torch, dtype))
        orders = derivatives(function, kappa, dim)
        overflows += int((~orders[0].isfinite()).sum())
        for order in range(3):
            if order >= len(orders):
                worst[order] = math.nan
                continue
            for computed, row in zip(orders[order].tolist(), exact(law, dim), strict=True):
                scale = max(abs(row[order]), FLOORS[law][order])
                if math.isfinite(computed) and computed != row[order]:
                    worst[order] = max(worst[order], float(abs(computed - row[order]) / scale) if scale else math.inf)
    return worst, overflows


def main() -> int:
    torch.set_num_threads(1)
    print(f"{len(DIMS)} dimensions from {DIMS[0]} to {DIMS[-1]}, {len(CONCENTRATIONS)} concentrations from 0 to 1e5\n")
    print("| law | expression | dtype | value | 1st derivative | 2nd derivative | not finite | within bounds |")
    print("|---|---|---|---:|---:|---:|---:|---|")
    failed = False
    for law, name, function, dtypes in ROWS:
        for dtype in dtypes:
            worst, overflows = worst_errors(law, function, dtype)
            verdict = ""
            if name == "modeling_asymvlm":
                kept = overflows == 0 and all(w <= b for w, b in zip(worst, BOUNDS[law, dtype], strict=True))
                failed |= not kept
                verdict = "yes" if kept else "NO"
            errors = " | ".join("none" if math.isnan(error) else f"{error:.0e}" for error in worst)
            print(
                f"| {law} | {name} | {dtype} | {errors} | {overflows}/{len(DIMS) * len(CONCENTRATIONS)} | {verdict} |"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
