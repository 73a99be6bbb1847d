"""Log-normalisers of the von Mises-Fisher and Power Spherical distributions, relative to the uniform density.

Notation: `t = <mean direction, x>` on the unit sphere of `R^d`, `C_d(kappa)` the factor that makes the density
`C_d(kappa) exp(kappa t)` (von Mises-Fisher) or `C_d(kappa) (1 + t)^kappa` (Power Spherical) integrate to one, and

    G_d(kappa) = ln C_d(kappa) - ln C_d(0),    ln C_d(0) = lnGamma(d/2) - ln 2 - (d/2) ln pi    (of both).

`G_d(0) = 0`: unlike `ln C_d`, which exceeds 1000 nats in a thousand dimensions, `G_d` carries no offset to round away.

**Von Mises-Fisher.** `G_d = -ln 0F1(; d/2; kappa^2/4)` (DLMF 10.39.9) and `dG_d/dkappa = -A_d`, with the mean
resultant length `A_d = I_{d/2}(kappa) / I_{d/2-1}(kappa)`. Write `v = d/2 - 1`, `z = kappa/v`, `s = sqrt(1 + z^2)`,
`p = 1/s`, `u = z^2/(2(1+s))`. The uniform expansion DLMF 10.41.3, with `sum_k U_k(p) v^-k = exp D(p)`, and
`lnGamma(v+1)` from DLMF 5.11.1, whose remainder is `-D(1)` (DLMF 10.41.3 as `z -> 0`), leave no large terms:

    -G_d  = v (2u - log1p(u)) - 1/2 log1p(2u) - (1-p) E(p),    E(p) = (D(1) - D(p)) / (1-p) (a polynomial)
      A_d = z/(1+s) - z p^2 (1/2 + p D'(p)) / v

The recurrence of `U_k` (DLMF 10.41.9) becomes, for the logarithm, `D_1' = (1 - 5p^2)/8` and
`D_{k+1}' = 1/2 (q D_k')' + 1/2 q sum_{0<j<k} D_j' D_{k-j}'` with `q = p^2 - p^4`. Small dimensions start from `d + 2n`
and come back by the contiguous relation of 0F1 (DLMF 10.29.1), whose terms are all positive. With `y = kappa/d`:

    -G_d  = -G_{d+2} + log1p(y A_{d+2}),    A_d = y / (1 + y A_{d+2}),
     A_d' = (1 - kappa y A_{d+2}') / (d (1 + y A_{d+2})^2)

**Power Spherical** (De Cao & Aziz 2020, "The Power Spherical distribution", arXiv 2006.04437). Write `b = (d-1)/2`,
`a = b + kappa`, `s = 2b + kappa`, `w = kappa/s` (the mean of `t`). Their gamma functions, through Stirling's series
(DLMF 5.11.1) with remainder `R(x) = sum_k B_2k / (2k(2k-1)) x^(1-2k)`, become

    -G_d  = (kappa - 1/2)/2 ln(a/b) - (s - 1/2)/2 ln(s^2/(4ab)) + [R(a) - R(b)] - [R(s) - R(2b)]
    -G_d' = E[ln(1+t)] = log1p(w) - b/(2as) + R'(a) - R'(s)
     G_d  = G_{d+2} + log1p(kappa(1-kappa) / ((d-1+kappa)(d+kappa)))

where `a/b = 1 + kappa/b` and `s^2/(4ab) = 1 + kappa^2/(2b(2b+2kappa))`. The last line, from `Gamma(x+1) = x Gamma(x)`,
serves small dimensions and shows `G_d(1) = 0` for every `d`.

**The paper's normaliser.** `vmf_log_normalizer_paper` is the approximation published with AsymVLM: minus the mean of
the integrals of the lower and upper bounds of Ruiz-Antolin & Segura (2016, arXiv 1606.02008) on `A_d`,
`kappa / (b + sqrt((b+1)^2 + kappa^2)) <= A_d <= kappa / (b + sqrt(b^2 + kappa^2))`. Its slope is up to
`1/(2(d-1))` from `-A_d` in relative terms, and it ends about 0.1 nat from `G_d` as kappa grows.

**Accuracy**, measured against 50 digits for `2 <= d <= 8192` and `1e-4 <= kappa <= 1e5` (relative; the Power Spherical
value and first derivative, which cross zero, relative to no less than 1e-3 and 1e-2):

    |                           | value | first derivative | second derivative |
    |---------------------------|-------|------------------|-------------------|
    | von Mises-Fisher, float64 | 1e-14 |            5e-14 |             5e-13 |
    | von Mises-Fisher, float32 | 5e-7  |            4e-7  |             6e-5  |
    | Power Spherical, float64  | 1e-14 |            3e-15 |             2e-14 |
    | Power Spherical, float32  | 3e-6  |            2e-6  |             3e-5  |

**Domain**: finite `concentration >= 0`. It is not checked, since that would wait for the device and split a compiled
graph. A negative one has no density here: von Mises-Fisher continues it evenly (`G_d(-kappa) = G_d(kappa)`, the
opposite direction), Power Spherical returns an arbitrary number or NaN. Infinity and NaN yield NaN. All operations are
elementwise and run in the dtype of the input (float32 for narrower ones) on its device; autocast leaves them alone.
"""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import torch


Polynomial = tuple[Fraction, ...]  # coefficients, constant first
Coefficients = tuple[float, ...]
CoefficientTable = tuple[int, *tuple[Coefficients, ...]]  # steps of the recurrence in d, then polynomials

MAX_TERMS = 12  # of either asymptotic series


def uniform_log_density(dim: int) -> float:
    """`ln C_d(0)`: minus the logarithm of the area of the unit sphere of `R^dim`, in nats.

    Raises:
        `TypeError`: if `dim` is not an integer.
        `ValueError`: if `dim` is less than 2.
    """
    dim = _checked_dim(dim)
    return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)


def vmf_log_normalizer(concentration: torch.Tensor, dim: int) -> torch.Tensor:
    """`ln C_d(kappa) - ln C_d(0)` of the von Mises-Fisher distribution; exact, at most 0, derivative `-A_d`.

    Args:
        concentration (`torch.Tensor` of any shape): kappa >= 0, finite, of a floating-point dtype.
        dim (`int`): dimension d >= 2 of the space that holds the sphere.

    Returns:
        `torch.Tensor` of the same shape, in nats: float64 for float64 input, otherwise float32.

    Raises:
        `TypeError`: if `concentration` is not a floating-point tensor or `dim` is not an integer.
        `ValueError`: if `dim` is less than 2.
    """
    return _Derivative.apply(*_arguments(concentration, dim), _vmf_derivative, 0)


def vmf_mean_resultant_length(concentration: torch.Tensor, dim: int) -> torch.Tensor:
    """`A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa)`, the mean of `t` under von Mises-Fisher, from 0 towards 1.

    Arguments, dtype and errors are those of [`vmf_log_normalizer`].
    """
    return -_Derivative.apply(*_arguments(concentration, dim), _vmf_derivative, 1)


def power_spherical_log_normalizer(concentration: torch.Tensor, dim: int) -> torch.Tensor:
    """`ln C_d(kappa) - ln C_d(0)` of Power Spherical; exact, positive for kappa in (0, 1), negative beyond 1.

    Finite for kappa up to 1e36 in float32 and 1e305 in float64, with a relative error of eps (8 + ln kappa) at most;
    beyond, its terms overflow and it is -inf or NaN.
    Arguments, dtype and errors are those of [`vmf_log_normalizer`].
    """
    return _Derivative.apply(*_arguments(concentration, dim), _power_spherical_derivative, 0)


def power_spherical_mean_log1p_cosine(concentration: torch.Tensor, dim: int) -> torch.Tensor:
    """`E[ln(1+t)]` under Power Spherical, in nats: minus the derivative of its log-normaliser, below ln 2.

    Arguments, dtype and errors are those of [`vmf_log_normalizer`].
    """
    return -_Derivative.apply(*_arguments(concentration, dim), _power_spherical_derivative, 1)


def vmf_log_normalizer_paper(concentration: torch.Tensor, dim: int) -> torch.Tensor:
    """AsymVLM's approximation `F_d(kappa) - F_d(0)` of [`vmf_log_normalizer`], for parity with published models.

    `F_d = 1/2 [b ln(b + r_1) - r_1 + b ln(b + r_2) - r_2]` with `b = (d-1)/2`, `r_1 = sqrt(b^2 + kappa^2)` and
    `r_2 = sqrt((b+1)^2 + kappa^2)`, written so that nothing cancels. Arguments, dtype and errors are those of
    [`vmf_log_normalizer`].
    """
    kappa, dim = _arguments(concentration, dim)
    half = (dim - 1) / 2
    total = torch.zeros_like(kappa)
    for offset in (half, half + 1):
        excess = kappa * (kappa / (torch.hypot(kappa, torch.full_like(kappa, offset)) + offset))
        total = total + half * torch.log1p(excess / (half + offset)) - excess
    return total / 2


class _Derivative(torch.autograd.Function):
    """`formula(kappa, dim, order)`, the derivative of that order of G_d, whose own derivative is the next order.

    The highest order, 2, is an ordinary differentiable expression, so that every further derivative exists too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        kappa: torch.Tensor, dim: int, formula: Callable[[torch.Tensor, int, int], torch.Tensor], order: int
    ) -> torch.Tensor:
        return formula(kappa, dim, order)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        kappa, ctx.dim, ctx.formula, ctx.order = inputs
        ctx.save_for_backward(kappa)

    @staticmethod
    def backward(ctx, gradient):
        (kappa,) = ctx.saved_tensors
        if ctx.order == 0:
            slope = _Derivative.apply(kappa, ctx.dim, ctx.formula, 1)
        else:
            slope = ctx.formula(kappa, ctx.dim, 2)
        return gradient * slope, None, None, None


def _vmf_derivative(kappa: torch.Tensor, dim: int, order: int) -> torch.Tensor:
    steps, chord, slope, curvature = _vmf_coefficients(dim, kappa.dtype == torch.float64)
    v = dim / 2 + steps - 1
    z = kappa / v
    s = torch.hypot(z, torch.ones_like(z))
    p = 1 / s
    ratio = z / (1 + s)
    if order > 0 or steps > 0:
        slope_at_p = _evaluate(slope, p)
        length = ratio - z * p * p * (0.5 + p * slope_at_p) / v
    if order == 0:
        u = z * ratio / 2
        result = v * (2 * u - torch.log1p(u)) - torch.log1p(2 * u) / 2 - z * ratio * p * _evaluate(chord, p)
    elif order == 1:
        result = length
    else:
        # dp/dz = -z p^3 and z^2 p^2 = 1 - p^2.
        bend = slope_at_p - (1 - p * p) * (3 * slope_at_p + p * _evaluate(curvature, p))
        result = p * (1 / (1 + s) - p * (p * p - 0.5 + p * bend) / v) / v
    for lower_dim in range(dim + 2 * steps - 2, dim - 2, -2):
        y = kappa / lower_dim
        growth = y * length
        length = y / (1 + growth)
        if order == 0:
            result = result + torch.log1p(growth)
        elif order == 1:
            result = length
        else:
            result = (1 - kappa * (y * result)) / (1 + growth) / (1 + growth) / lower_dim
    return -result


def _power_spherical_derivative(kappa: torch.Tensor, dim: int, order: int) -> torch.Tensor:
    steps, chord, double_chord, slope, curvature = _power_spherical_coefficients(dim, kappa.dtype == torch.float64)
    double = dim - 1 + 2 * steps  # 2b
    half = double / 2
    inverse_a = 1 / (kappa + half)
    inverse_s = 1 / (kappa + double)
    if order == 0:
        result = (kappa + (double - 0.5)) / 2 * torch.log1p(kappa / double * (kappa / (double + 2 * kappa)))
        result = result - (kappa - 0.5) / 2 * torch.log1p(kappa / half)
        result = result + kappa * (_evaluate(chord, inverse_a) * inverse_a / half)
        result = result - kappa * (_evaluate(double_chord, inverse_s) * inverse_s / double)
    elif order == 1:
        result = half / 2 * inverse_a * inverse_s - torch.log1p(kappa / (kappa + double))
        result = result - _evaluate(slope, inverse_a) + _evaluate(slope, inverse_s)
    else:
        result = -half * inverse_a * inverse_s * (1 + (inverse_a + inverse_s) / 2)
        result = result - _evaluate(curvature, inverse_a) + _evaluate(curvature, inverse_s)
    correction = torch.zeros_like(kappa)  # summed apart: far smaller than the result at large kappa
    for lower_dim in range(dim + 2 * steps - 2, dim - 2, -2):
        m = lower_dim - 1
        if order == 0:
            change = kappa / (m + kappa) * ((1 - kappa) / (lower_dim + kappa))
            # 1 + change, which cancels towards kappa >> lower_dim, is also the product of these two.
            product = lower_dim / (lower_dim + kappa) * ((m + 2 * kappa) / (m + kappa))
            term = torch.where(change > -0.5, torch.log1p(change), torch.log(product))
        elif order == 1:
            term = (m / (m + kappa) - 2 * kappa) / (m + 2 * kappa) / (lower_dim + kappa)
        else:
            term = (1 / (m + kappa)) ** 2 + (1 / (lower_dim + kappa)) ** 2 - (2 / (m + 2 * kappa)) ** 2
        correction = correction + term
    return result + correction


def _checked_dim(dim: int) -> int:
    if torch.jit.is_tracing() and isinstance(dim, torch.Tensor):  # where a size of a shape is one
        dim = int(dim)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, the dimension of the space that holds the sphere, got {dim!r}.")
    if dim < 2:
        raise ValueError(f"dim must be at least 2 (the circle), got {dim}.")
    return operator.index(dim)  # under torch.compile, a size of unknown value becomes a constant here


def _arguments(concentration: torch.Tensor, dim: int) -> tuple[torch.Tensor, int]:
    if not isinstance(concentration, torch.Tensor) or not concentration.is_floating_point():
        kind = concentration.dtype if isinstance(concentration, torch.Tensor) else type(concentration).__name__
        raise TypeError(
            f"concentration must be a tensor of a floating-point dtype, got {kind}; convert it, for instance with "
            "torch.as_tensor(concentration, dtype=torch.float32)."
        )
    return concentration if concentration.dtype == torch.float64 else concentration.float(), _checked_dim(dim)


def _evaluate(coefficients: Coefficients, x: torch.Tensor) -> torch.Tensor:
    """Horner's rule, constant coefficient first."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x
        if coefficient != 0:  # every other one of Stirling's series is
            result = result + coefficient
    return result


# Dynamo can trace neither rational arithmetic nor a cache: it takes what these two functions return as constants.
@torch.compiler.assume_constant_result
def _vmf_coefficients(dim: int, double: bool) -> CoefficientTable:
    return _vmf_table(dim, double)


@torch.compiler.assume_constant_result
def _power_spherical_coefficients(dim: int, double: bool) -> CoefficientTable:
    return _power_spherical_table(dim, double)


@lru_cache
def _vmf_table(dim: int, double: bool) -> CoefficientTable:
    """Number of steps down, then the polynomials E, D' and D'' in p, at the dimension where the steps start."""
    smallest_dim, negligible = (34, 2**-55) if double else (26, 2**-26)
    steps = max(0, -((dim - smallest_dim) // 2))
    v = Fraction(dim, 2) + steps - 1
    slope: Polynomial = (Fraction(0),)
    for k, term in enumerate(_olver_log_slopes(), start=1):
        size = max(abs(float(sum(c * Fraction(i, 16) ** n for n, c in enumerate(term)))) for i in range(17))
        slope = _add(slope, tuple(c / v**k for c in term))
        if size / float(v) ** (k + 1) < negligible:
            break
    logarithm = (Fraction(0), *(c / (n + 1) for n, c in enumerate(slope)))
    return steps, _floats(_chord(logarithm, Fraction(1))), _floats(slope), _floats(_differentiate(slope))


@lru_cache
def _power_spherical_table(dim: int, double: bool) -> CoefficientTable:
    """Number of steps down, then polynomials in y = 1/x: the chords of R from b and from 2b, R' and R''."""
    smallest_dim, negligible = (21, 2**-59) if double else (52, 2**-30)
    steps = max(0, -((dim - smallest_dim) // 2))
    half = Fraction(dim - 1, 2) + steps
    remainder, slope, curvature = [Fraction(0)], [Fraction(0)] * 2, [Fraction(0)] * 2
    for k, bernoulli in enumerate(_even_bernoulli_numbers(), start=1):
        remainder += [bernoulli / (2 * k * (2 * k - 1)), Fraction(0)]
        slope += [-bernoulli / (2 * k), Fraction(0)]
        curvature += [Fraction(0), bernoulli]
        if 2 * abs(bernoulli) / half ** (2 * k) < negligible:
            break
    chord, double_chord = (_floats(_chord(tuple(remainder), 1 / x)) for x in (half, 2 * half))
    return steps, chord, double_chord, _floats(tuple(slope)), _floats(tuple(curvature))


@lru_cache
def _olver_log_slopes() -> tuple[Polynomial, ...]:
    """`D_1', D_2', ...` as polynomials in p, by the recurrence of the module docstring."""
    q = tuple(map(Fraction, (0, 0, 1, 0, -1)))
    slopes: list[Polynomial] = [(Fraction(1, 8), Fraction(0), Fraction(-5, 8))]
    while len(slopes) < MAX_TERMS:
        total = _differentiate(_multiply(q, slopes[-1]))
        for first, second in zip(slopes[:-1], slopes[-2::-1], strict=True):
            total = _add(total, _multiply(q, _multiply(first, second)))
        slopes.append(tuple(c / 2 for c in total))
    return tuple(slopes)


@lru_cache
def _even_bernoulli_numbers() -> tuple[Fraction, ...]:
    """`B_2, B_4, ...` (DLMF 24.5.3)."""
    numbers = [Fraction(1)]
    for n in range(1, 2 * MAX_TERMS + 1):
        numbers.append(-sum(math.comb(n + 1, j) * numbers[j] for j in range(n)) / Fraction(n + 1))
    return tuple(numbers[2::2])


def _add(first: Polynomial, second: Polynomial) -> Polynomial:
    short, long = sorted((first, second), key=len)
    return tuple(a + b for a, b in zip(short, long, strict=False)) + long[len(short) :]


def _multiply(first: Polynomial, second: Polynomial) -> Polynomial:
    product = [Fraction(0)] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            product[i + j] += a * b
    return tuple(product)


def _differentiate(polynomial: Polynomial) -> Polynomial:
    return tuple(n * c for n, c in enumerate(polynomial))[1:]


def _chord(polynomial: Polynomial, root: Fraction) -> Polynomial:
    """`(f(x) - f(root)) / (x - root)` as a polynomial in x."""
    quotient = [polynomial[-1]]
    for coefficient in polynomial[-2:0:-1]:
        quotient.append(coefficient + root * quotient[-1])
    return tuple(reversed(quotient))


def _floats(polynomial: Polynomial) -> Coefficients:
    return tuple(map(float, polynomial))
