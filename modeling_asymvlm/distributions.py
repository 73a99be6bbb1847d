"""Directional distributions on the unit hypersphere S^(d-1) = {z in R^d : ‖z‖ = 1}, as `torch.distributions`.

Densities are with respect to the surface measure, so that the uniform density is C_d(0) = Gamma(d/2) / (2 pi^(d/2)).
"""

import math

import torch
import torch.nn.functional as F
from torch.distributions import Distribution, constraints

from .special import (
    power_spherical_log_normalizer,
    uniform_log_density,
    vmf_log_normalizer,
    vmf_mean_resultant_length,
)


class _UnitSphere(constraints.Constraint):
    """Vectors of length one, up to the rounding of a normalised vector: 10 * eps * sqrt(d)."""

    event_dim = 1

    def check(self, value: torch.Tensor) -> torch.Tensor:
        tolerance = 10 * torch.finfo(value.dtype).eps * value.shape[-1] ** 0.5
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() <= tolerance


unit_sphere = _UnitSphere()


class _Directional(Distribution):
    """
    Rotationally symmetric law around a mean direction.

    Args:
        loc (`torch.Tensor` of shape `(*batch, dim)`, dim >= 2): mean direction mu, of length one.
        concentration (`torch.Tensor` of shape `(*batch,)`): kappa >= 0; 0 is the uniform law.
    """

    arg_constraints = {"loc": unit_sphere, "concentration": constraints.nonnegative}
    support = unit_sphere

    def __init__(self, loc: torch.Tensor, concentration: torch.Tensor, validate_args: bool | None = None):
        if loc.ndim < 1 or loc.shape[-1] < 2:
            raise ValueError(f"loc must have shape (*batch, dim) with dim >= 2, got {tuple(loc.shape)}.")
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @classmethod
    def from_natural_parameter(cls, natural_parameter: torch.Tensor, validate_args: bool | None = None):
        """
        The law with eta = concentration * loc of shape `(*batch, dim)`. For eta = 0, which has no direction and is the
        uniform law, the first axis stands in for it.
        """
        concentration = torch.linalg.vector_norm(natural_parameter, dim=-1)
        first_axis = F.one_hot(torch.zeros_like(concentration, dtype=torch.long), natural_parameter.shape[-1])
        loc = torch.where(concentration[..., None] > 0, F.normalize(natural_parameter, dim=-1, eps=0), first_axis)
        return cls(loc, concentration, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(_Directional, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """Dimension d of the ambient space."""
        return self.event_shape[0]

    @property
    def mode(self) -> torch.Tensor:
        """Direction of highest density, shape `(*batch, dim)`."""
        return self.loc

    @property
    def mean(self) -> torch.Tensor:
        """E[z] = mean_resultant_length * loc, shape `(*batch, dim)`; shorter than one."""
        return self.mean_resultant_length[..., None] * self.loc

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """‖E[z]‖ in [0, 1), shape `(*batch,)`."""
        raise NotImplementedError

    def _cosine(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (self.loc * value).sum(-1)


class VonMisesFisher(_Directional):
    """
    Von Mises–Fisher law, p(z) = C_d(kappa) exp(kappa mu'z) (Mardia & Jupp, "Directional Statistics", 2000, 9.3).
    """

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa), shape `(*batch,)`."""
        return vmf_mean_resultant_length(self.concentration, self.dim)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density in nats at the unit vectors `value` of shape `(*sample, *batch, dim)`."""
        log_normalizer = uniform_log_density(self.dim) + vmf_log_normalizer(self.concentration, self.dim)
        return self.concentration * self._cosine(value) + log_normalizer


class PowerSpherical(_Directional):
    """
    Power Spherical law, p(z) = C_d(kappa) (1 + mu'z)^kappa (De Cao & Aziz, "The Power Spherical distribution", 2020).
    """

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """kappa / (kappa + d - 1), shape `(*batch,)`."""
        return self.concentration / (self.concentration + self.dim - 1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density in nats at unit vectors of shape `(*sample, *batch, dim)`; -inf opposite to `loc`."""
        if self._validate_args:
            self._validate_sample(value)
        # 1 + mu'z = ‖mu + z‖² / 2, which keeps its digits near the antipode where 1 + cosine would cancel.
        log_one_plus_cosine = 2 * torch.linalg.vector_norm(self.loc + value, dim=-1).log() - math.log(2)
        log_normalizer = uniform_log_density(self.dim) + power_spherical_log_normalizer(self.concentration, self.dim)
        return self.concentration * log_one_plus_cosine + log_normalizer


__all__ = ["PowerSpherical", "VonMisesFisher"]
