"""Directional distributions on the unit hypersphere S^(d-1) = {z in R^d : ‖z‖ = 1}, as `torch.distributions`.

Densities are with respect to the surface measure, so that the uniform density is C_d(0) = Gamma(d/2) / (2 pi^(d/2)).
Their logarithms are evaluated from the mode, `H_d(kappa) - kappa (1 - t)` with `1 - t = ‖mu - z‖² / 2`, rather than as
`G_d(kappa) + kappa t`: at a large concentration the latter is a difference of numbers of the size of kappa.
"""

import torch
from torch.distributions import register_kl

from .distributions_base import Directional, HypersphericalUniform
from .distributions_entropy import (
    power_spherical_concentration_divergence,
    power_spherical_log_mode_density,
    power_spherical_relative_entropy,
    vmf_cosine_variance,
    vmf_log_mode_density,
    vmf_relative_entropy,
)
from .distributions_fit import fit_power_spherical, fit_vmf
from .distributions_kl import power_spherical_from_power_spherical, power_spherical_from_vmf, vmf_from_vmf
from .distributions_sampling import power_spherical_cosines, vmf_cosines, vmf_cosines_on_the_sphere
from .log_normalizers import uniform_log_density, vmf_log_normalizer, vmf_mean_resultant_length


class VonMisesFisher(Directional):
    """
    Von Mises-Fisher distribution, p(z) = C_d(kappa) exp(kappa mu'z) (Mardia & Jupp, "Directional Statistics", 2000,
    9.3).

    `rsample` exists on the sphere (dim = 3), where the cosine has a closed form.

    Args:
        loc (`torch.Tensor` of shape `(*batch, dim)`, dim >= 2): mean direction mu, of length one.
        concentration (`torch.Tensor` of shape `(*batch,)`, or a number): kappa >= 0, finite; uniform at 0.
        validate_args (`bool`, *optional*): whether to check arguments and values.

    Example:
        >>> law = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 50.0]))
        >>> law.sample((4,)).shape
        torch.Size([4, 2, 3])
    """

    _fit = staticmethod(fit_vmf)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.dim == 3

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa), shape `(*batch,)`."""
        return vmf_mean_resultant_length(self.concentration, self.dim)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density in nats at the unit vectors `value` of shape `(*sample, *batch, dim)`."""
        if self._validate_args:
            self._validate_sample(value)
        log_mode_density = uniform_log_density(self.dim) + vmf_log_mode_density(self.concentration, self.dim)
        return log_mode_density - self.concentration * self.separation(value)

    def _variances(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Across: A_d / kappa, by the recurrence of A_d without a division by kappa.
        growth = self.concentration * vmf_mean_resultant_length(self.concentration, self.dim + 2)
        return vmf_cosine_variance(self.concentration, self.dim), 1 / (self.dim + growth)

    def _relative_entropy(self) -> torch.Tensor:
        return vmf_relative_entropy(self.concentration, self.dim)

    def _draw_angle(self, concentration, generator):
        if self.dim == 3:
            return vmf_cosines_on_the_sphere(concentration, generator)
        return vmf_cosines(concentration, self.dim, generator)


class PowerSpherical(Directional):
    """
    Power Spherical distribution, p(z) = C_d(kappa) (1 + mu'z)^kappa (De Cao & Aziz, "The Power Spherical
    distribution", 2020, arXiv 2006.04437). The density is zero opposite to `loc`.

    Args:
        loc (`torch.Tensor` of shape `(*batch, dim)`, dim >= 2): mean direction mu, of length one.
        concentration (`torch.Tensor` of shape `(*batch,)`, or a number): kappa >= 0, finite; uniform at 0.
        validate_args (`bool`, *optional*): whether to check arguments and values.
    """

    has_rsample = True
    _fit = staticmethod(fit_power_spherical)

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """kappa / (kappa + d - 1), shape `(*batch,)`."""
        return self.concentration / (self.concentration + self.dim - 1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density in nats at unit vectors of shape `(*sample, *batch, dim)`; -inf opposite to `loc`."""
        if self._validate_args:
            self._validate_sample(value)
        # (1 - t)/(1 + t), so that ln((1 + t)/2) keeps its digits both near the mode and near the antipode.
        ratio = self.separation(value) / ((self.loc + value).square().sum(-1) / 2)
        log_mode_density = uniform_log_density(self.dim) + power_spherical_log_mode_density(
            self.concentration, self.dim
        )
        return log_mode_density - torch.special.xlog1py(self.concentration, ratio)

    def _variances(self) -> tuple[torch.Tensor, torch.Tensor]:
        # (1 + t)/2 is Beta(a, b) with b = (d-1)/2, a = b + kappa.
        total = self.concentration + (self.dim - 1)
        across = (2 * self.concentration + (self.dim - 1)) / total / (total + 1)
        return across * (self.dim - 1) / total, across

    def _relative_entropy(self) -> torch.Tensor:
        return power_spherical_relative_entropy(self.concentration, self.dim)

    def _draw_angle(self, concentration, generator):
        return power_spherical_cosines(concentration, self.dim, generator)


_Distribution = VonMisesFisher | PowerSpherical | HypersphericalUniform


def product(*distributions: _Distribution) -> _Distribution:
    """
    Distribution whose density is proportional to the product of the given densities: a fusion of independent evidence.

    The natural parameters eta = kappa mu add. For von Mises-Fisher this is exact. A product of Power Spherical
    densities is none; it is projected on the Power Spherical distribution with the summed natural parameter, whose
    log-density has the same harmonics of degree one as the product's (these are linear in eta, with one factor for all
    distributions). The projection is exact for equal directions, does not depend on order or grouping, and turns
    opposite distributions of equal concentration to the uniform one. A uniform factor changes nothing.

    Args:
        distributions: at least one; von Mises-Fisher or Power Spherical, not both, and uniform ones, of the same
            dimension and of broadcastable batch shapes.

    Raises:
        TypeError: if there is none, or if they are of different or of other kinds.
        ValueError: if the dimensions differ.
    """
    if not distributions or not all(isinstance(each, _Distribution) for each in distributions):
        raise TypeError(f"product takes one or more directional distributions, got {distributions}.")
    if len({each.dim for each in distributions}) > 1:
        dims = [each.dim for each in distributions]
        raise ValueError(f"The distributions of a product must share a dimension, got {dims}.")
    batch_shape = torch.broadcast_shapes(*(each.batch_shape for each in distributions))
    informative = [each for each in distributions if isinstance(each, Directional)]
    if not informative:
        return distributions[0].expand(batch_shape)
    kinds = {type(each) for each in informative}
    if len(kinds) > 1:
        raise TypeError(
            f"The product of {' and '.join(sorted(kind.__name__ for kind in kinds))} is of neither kind; use one kind."
        )
    total = informative[0].natural_parameter
    for each in informative[1:]:
        total = total + each.natural_parameter
    return kinds.pop().from_natural_parameter(total.expand(batch_shape + total.shape[-1:]))


def _check_dim(first, second) -> None:
    if first.dim != second.dim:
        raise ValueError(f"KL needs distributions on the same sphere, got dimensions {first.dim} and {second.dim}.")


def _directions(first, second) -> torch.Tensor:
    _check_dim(first, second)
    return first.separation(second.loc)


def _broadcast(result: torch.Tensor, first, second) -> torch.Tensor:
    _check_dim(first, second)
    return result.expand(torch.broadcast_shapes(first.batch_shape, second.batch_shape))


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p, q):
    return vmf_from_vmf(p.concentration, q.concentration, _directions(p, q), p.dim)


@register_kl(PowerSpherical, VonMisesFisher)
def _kl_power_spherical_vmf(p, q):
    return power_spherical_from_vmf(p.concentration, q.concentration, _directions(p, q), p.dim)


@register_kl(PowerSpherical, PowerSpherical)
def _kl_power_spherical_power_spherical(p, q):
    return power_spherical_from_power_spherical(p.concentration, q.concentration, _directions(p, q), p.dim)[0]


@register_kl(VonMisesFisher, HypersphericalUniform)
@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_directional_uniform(p, q):
    return _broadcast(p._relative_entropy(), p, q)


@register_kl(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p, q):
    return _broadcast(-vmf_log_normalizer(q.concentration, q.dim), p, q)


@register_kl(HypersphericalUniform, PowerSpherical)
def _kl_uniform_power_spherical(p, q):
    zero = torch.zeros_like(q.concentration)
    return _broadcast(power_spherical_concentration_divergence(zero, q.concentration, q.dim), p, q)


@register_kl(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p, q):
    return _broadcast(torch.zeros_like(p.entropy()), p, q)


__all__ = ["HypersphericalUniform", "PowerSpherical", "VonMisesFisher", "product"]
