"""Log-normalisers and their derivatives in fifty digits, by mpmath."""

import functools

import mpmath


LISTED_DIMS = (2, 3, 8, 64, 256, 512, 768, 1024, 1152, 4096)


def in_fifty_digits(function):
    @functools.cache
    @functools.wraps(function)
    def wrapped(*arguments):
        with mpmath.workdps(50):
            return function(*arguments)

    return wrapped


@in_fifty_digits
def exact_vmf(kappa: float, dim: int) -> tuple:
    """Value, first and second derivative of -ln 0F1(; d/2; kappa^2/4), by d0F1(; b; x)/dx = 0F1(; b+1; x) / b."""
    k, b = mpmath.mpf(kappa), mpmath.mpf(dim) / 2
    f0, f1, f2 = (mpmath.hyp0f1(b + i, k * k / 4, maxterms=10**6) for i in range(3))
    slope = k / (2 * b) * f1 / f0
    return -mpmath.log(f0), -slope, slope**2 - f1 / f0 / (2 * b) - k**2 / (4 * b * (b + 1)) * f2 / f0


@in_fifty_digits
def exact_power_spherical(kappa: float, dim: int) -> tuple:
    k, b = mpmath.mpf(kappa), mpmath.mpf(dim - 1) / 2
    value = mpmath.loggamma(2 * b + k) - mpmath.loggamma(b + k) + mpmath.loggamma(b) - mpmath.loggamma(2 * b)
    slope = mpmath.psi(0, 2 * b + k) - mpmath.psi(0, b + k) - mpmath.log(2)
    return value - k * mpmath.log(2), slope, mpmath.psi(1, 2 * b + k) - mpmath.psi(1, b + k)


@in_fifty_digits
def exact_paper(kappa: float, dim: int) -> tuple:
    """F_d(kappa) - F_d(0) as printed, and minus the mean of the two bounds on A_d."""
    k, b = mpmath.mpf(kappa), mpmath.mpf(dim - 1) / 2

    def printed(k):
        roots = [mpmath.sqrt(a**2 + k**2) for a in (b, b + 1)]
        return sum(b * mpmath.log(b + root) - root for root in roots) / 2

    bounds = [k / (b + mpmath.sqrt(a**2 + k**2)) for a in (b, b + 1)]
    return printed(k) - printed(mpmath.mpf(0)), -sum(bounds) / 2


EXACT = {"vmf": exact_vmf, "power_spherical": exact_power_spherical}
