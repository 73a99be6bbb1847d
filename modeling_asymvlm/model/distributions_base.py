"""What the directional distributions share: the sphere as a constraint, and the symmetry about a mean direction or
about none.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.distributions import Distribution, biject_to, constraints, transform_to, transforms

from .distributions_sampling import around, uniform_directions
from .log_normalizers import uniform_log_density


class _UnitSphere(constraints.Constraint):
    """Vectors of length one, up to the rounding of a normalised vector: 10 * eps * sqrt(d)."""

    event_dim = 1

    def check(self, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        tolerance = 10 * torch.finfo(value.dtype).eps * value.shape[-1] ** 0.5
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() <= tolerance


class _FiniteNonnegative(constraints.Constraint):
    def check(self, value: torch.Tensor) -> torch.Tensor:
        return (value >= 0) & (value < torch.inf)


unit_sphere = _UnitSphere()
finite_nonnegative = _FiniteNonnegative()


class _Normalize(transforms.Transform):
    """Vectors to their directions, the first axis for 0: onto the sphere, but not one to one, so of no density."""

    domain = constraints.real_vector
    codomain = unit_sphere

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Normalize)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        first_axis = (torch.arange(x.shape[-1], device=x.device) == 0).to(x.dtype)
        has_direction = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True) > 0
        return F.normalize(torch.where(has_direction, x, first_axis), dim=-1, eps=0)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return y


# No smooth map of a Euclidean space is one to one onto the sphere, so that `biject_to` has none for it.
@transform_to.register(_UnitSphere)
def _onto_the_sphere(constraint: constraints.Constraint) -> transforms.Transform:
    return _Normalize()


@biject_to.register(_FiniteNonnegative)
@transform_to.register(_FiniteNonnegative)
def _onto_the_positive_reals(constraint: constraints.Constraint) -> transforms.Transform:
    return transforms.ExpTransform()


class Directional(Distribution):
    """Base of the distributions whose density is a function of the cosine `loc'z` to a mean direction."""

    arg_constraints = {"loc": unit_sphere, "concentration": finite_nonnegative}
    support = unit_sphere

    def __init__(self, loc: torch.Tensor, concentration: torch.Tensor | float, validate_args: bool | None = None):
        if loc.ndim < 1 or loc.shape[-1] < 2:
            raise ValueError(f"loc must have shape (*batch, dim) with dim >= 2, got {tuple(loc.shape)}.")
        if not isinstance(concentration, torch.Tensor):
            concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)
        dtype = torch.promote_types(torch.promote_types(loc.dtype, concentration.dtype), torch.float32)
        if loc.dtype in (torch.bfloat16, torch.float16):  # of length one only to their own rounding
            self.loc = F.normalize(self.loc.to(dtype), dim=-1)
        self.loc, self.concentration = self.loc.to(dtype), self.concentration.to(dtype)

    @classmethod
    def from_natural_parameter(cls, natural_parameter: torch.Tensor, validate_args: bool | None = None):
        """
        The distribution with `eta = concentration * loc` of shape `(*batch, dim)`.

        eta = 0 has no direction and gives the uniform distribution: the first axis stands in for it, and the gradient
        there is 0, of all orders.
        """
        eta = natural_parameter.to(torch.promote_types(natural_parameter.dtype, torch.float32))
        has_direction = torch.linalg.vector_norm(eta.detach(), dim=-1) > 0
        first_axis = (torch.arange(eta.shape[-1], device=eta.device) == 0).to(eta.dtype)
        # Chosen before the norm is taken: at 0 its second derivative is not a number.
        directed = torch.where(has_direction[..., None], eta, first_axis)
        norm = torch.linalg.vector_norm(directed, dim=-1)
        concentration = torch.where(has_direction, norm, torch.zeros_like(norm))
        return cls(F.normalize(directed, dim=-1, eps=0), concentration, validate_args=validate_args)

    @classmethod
    def fit(cls, samples: torch.Tensor, weights: torch.Tensor | None = None):
        """
        The distribution of highest likelihood, without gradient.

        Args:
            samples (`torch.Tensor` of shape `(n, *batch, dim)`): unit vectors, float32 or float64.
            weights (`torch.Tensor` of shape `(n,)` or `(n, *batch)`, *optional*): non-negative weights of the samples,
                equal if not given.

        Raises:
            TypeError: if the samples are of another dtype.
            ValueError: if a sample is not of length one, if the shapes do not match, or if the samples of a batch
                element all coincide, where the likelihood has no maximum.
        """
        if not bool(unit_sphere.check(samples).all()):
            raise ValueError(
                "samples must be vectors of length one; normalise them with F.normalize(samples, dim=-1)."
            )
        return cls(*cls._fit(samples, weights))

    @staticmethod
    def _fit(samples: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean direction and concentration."""
        raise NotImplementedError

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Directional, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(Directional, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """Dimension d of the space that holds the sphere."""
        return self.event_shape[0]

    @property
    def natural_parameter(self) -> torch.Tensor:
        """eta = concentration * loc, shape `(*batch, dim)`."""
        return self.concentration[..., None] * self.loc

    @property
    def mode(self) -> torch.Tensor:
        """Direction of highest density, shape `(*batch, dim)`; one of all directions at concentration 0."""
        return self.loc

    @property
    def mean(self) -> torch.Tensor:
        """E[z] = mean_resultant_length * loc, shape `(*batch, dim)`; shorter than one."""
        return self.mean_resultant_length[..., None] * self.loc

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """‖E[z]‖ in [0, 1), shape `(*batch,)`."""
        raise NotImplementedError

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each coordinate, the diagonal of `covariance_matrix`, shape `(*batch, dim)`."""
        along, across = (each[..., None] for each in self._variances())
        return across + (along - across) * self.loc.square()

    @property
    def covariance_matrix(self) -> torch.Tensor:
        """Covariance of the coordinates, shape `(*batch, dim, dim)`."""
        along, across = (each[..., None, None] for each in self._variances())
        identity = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return across * identity + (along - across) * (self.loc[..., :, None] * self.loc[..., None, :])

    def _variances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Variances of z along `loc` and along any direction orthogonal to it."""
        raise NotImplementedError

    def entropy(self) -> torch.Tensor:
        """Differential entropy in nats with respect to the surface measure, shape `(*batch,)`."""
        return -uniform_log_density(self.dim) - self._relative_entropy()

    def _relative_entropy(self) -> torch.Tensor:
        """KL(self ‖ uniform)."""
        raise NotImplementedError

    def separation(self, value: torch.Tensor) -> torch.Tensor:
        """`1 - loc'value` at unit vectors of shape `(*sample, *batch, dim)`, accurate where they nearly agree."""
        return (self.loc - value).square().sum(-1) / 2

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Exact samples of shape `(*sample_shape, *batch, dim)`, reproducible by a seeded `generator`."""
        with torch.no_grad():
            return self._draw(sample_shape, generator)

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> torch.Tensor:
        """As `sample`, differentiable in both parameters.

        Raises:
            NotImplementedError: if `has_rsample` is False.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                f"{type(self).__name__} in dimension {self.dim} is sampled by rejection, which has no pathwise "
                "gradient: use sample(), or PowerSpherical, whose rsample() is exact in every dimension."
            )
        return self._draw(sample_shape, generator)

    def _draw(self, sample_shape: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
        concentration = self.concentration.expand(torch.Size(sample_shape) + self.batch_shape)
        cosine, sine = self._draw_angle(concentration, generator)
        return around(self.loc, cosine, sine, generator)

    def _draw_angle(
        self, concentration: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine to `loc`, each of the shape of `concentration`."""
        raise NotImplementedError


class HypersphericalUniform(Distribution):
    """
    Uniform distribution on the unit sphere of R^dim; scalar batch shape, until expanded.

    Args:
        dim (`int`): dimension d >= 2 of the space that holds the sphere.
        dtype (`torch.dtype`, *optional*): of the samples, defaults to `torch.get_default_dtype()`.
        device (`torch.device`, *optional*): of the samples.
        validate_args (`bool`, *optional*): whether to check values.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = unit_sphere
    has_rsample = True

    def __init__(
        self,
        dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ):
        self._log_density = torch.tensor(
            uniform_log_density(dim), dtype=dtype or torch.get_default_dtype(), device=device
        )
        super().__init__(torch.Size(), torch.Size((dim,)), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new._log_density = self._log_density
        super(HypersphericalUniform, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"HypersphericalUniform(dim={self.dim}{batch})"

    @property
    def dim(self) -> int:
        """Dimension d of the space that holds the sphere."""
        return self.event_shape[0]

    @property
    def mean(self) -> torch.Tensor:
        """Zero, shape `(*batch, dim)`."""
        return self._log_density.new_zeros(self._extended_shape())

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """Zero, shape `(*batch,)`."""
        return self._log_density.new_zeros(self.batch_shape)

    @property
    def mode(self) -> torch.Tensor:
        """NaN of shape `(*batch, dim)`, as for `torch.distributions.Uniform`: no direction is more likely."""
        return self._log_density.new_full(self._extended_shape(), torch.nan)

    @property
    def variance(self) -> torch.Tensor:
        """1/dim, shape `(*batch, dim)`."""
        return self._log_density.new_full(self._extended_shape(), 1 / self.dim)

    @property
    def covariance_matrix(self) -> torch.Tensor:
        """identity / dim, shape `(*batch, dim, dim)`."""
        return torch.diag_embed(self.variance)

    def entropy(self) -> torch.Tensor:
        """Logarithm of the area of the sphere, in nats, shape `(*batch,)`."""
        return -self._log_density.expand(self.batch_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Minus the logarithm of the area of the sphere, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_density.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Exact samples of shape `(*sample_shape, *batch, dim)`."""
        shape, like = self._extended_shape(torch.Size(sample_shape)), self._log_density
        return uniform_directions(shape, dtype=like.dtype, device=like.device, generator=generator)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Exact samples of shape `(*sample_shape, *batch, dim)`."""
        return self.rsample(sample_shape, generator=generator)
