"""Pair scores and the unified InfoNCE objective of AsymVLM.

A text ``r`` is a distribution on the unit hypersphere with natural parameter eta = kappa * mu, an image ``s`` a unit
vector z. The score of the pair is the log-density of the image under the text (Ju et al., "Exploiting the asymmetric
uncertainty structure of pre-trained VLMs on the unit hypersphere", NeurIPS 2025, arXiv 2505.11029):

| distribution      | delta(r, s)                              |
|-------------------|------------------------------------------|
| `vmf`             | kappa mu'z + G_d(kappa)                  |
| `power_spherical` | kappa ln(1 + mu'z) + G_d(kappa)          |
| `deterministic`   | mu'z, the cosine of CLIP                 |

G_d(kappa) = ln C_d(kappa) - ln C_d(0) is the log-normaliser relative to the uniform density, so a score of 0 means "no
better than uniform". With `normalizer="paper"`, G_d of von Mises-Fisher is replaced by the approximation of
the reference code; the Power Spherical normaliser of the reference code is exact already.

All computation is in float32 at least, whatever the input dtype and the autocast state.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .distributions import PowerSpherical, VonMisesFisher
from .log_normalizers import power_spherical_log_normalizer, vmf_log_normalizer, vmf_log_normalizer_paper
from .objective_tiles import LOWEST_COSINE, ContrastiveLoss, GatherRows, check_equal_batches


DISTRIBUTIONS = ("vmf", "power_spherical", "deterministic")
NORMALIZERS = ("exact", "paper")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float64 as it is, every other dtype as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Likelihood:
    """
    What a text says of images: its distribution and the normaliser of that, under their names in a configuration,
    which gives this object as [`AsymVLMConfig.law`].

    Args:
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.

    Raises:
        ValueError: for an unknown name.
    """

    distribution: str
    normalizer: str = "exact"

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"Unknown distribution {self.distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}.")
        if self.normalizer not in NORMALIZERS:
            raise ValueError(f"Unknown normalizer {self.normalizer!r}: choose one of {', '.join(NORMALIZERS)}.")

    @property
    def has_concentration(self) -> bool:
        """Whether texts are distributions with a concentration; the texts of `"deterministic"` are points."""
        return self.distribution != "deterministic"

    @property
    def is_linear(self) -> bool:
        """Whether the score of an image is linear in its unit vector, so that an inner product gives it."""
        return self.distribution != "power_spherical"

    @property
    def distribution_class(self) -> type[VonMisesFisher] | type[PowerSpherical]:
        """The class of a text's distribution. Raises `ValueError` for `"deterministic"`."""
        self.check_concentration()
        return VonMisesFisher if self.is_linear else PowerSpherical

    def check_concentration(self, source: str = "A model") -> None:
        """Raises `ValueError`, which begins with `source`, if texts have no concentration."""
        if not self.has_concentration:
            others = " or ".join(repr(name) for name in DISTRIBUTIONS if Likelihood(name).has_concentration)
            raise ValueError(
                f"{source} with distribution={self.distribution!r} gives points, not distributions: it has no "
                f"concentration, and so no uncertainty. Use one that was trained with distribution={others}."
            )

    def log_normalizer(self, concentration: torch.Tensor, dim: int) -> torch.Tensor:
        """
        Log-normaliser relative to the uniform density, G_d(kappa) = ln C_d(kappa) - ln C_d(0).

        Args:
            concentration (`torch.Tensor` of any shape): kappa >= 0.
            dim (`int`): dimension d >= 2 of the ambient space.

        Returns:
            `torch.Tensor` of the shape of `concentration`, float64 for float64 input and float32 otherwise; 0 for
            `"deterministic"`.
        """
        if not self.has_concentration:
            return torch.zeros_like(at_least_float32(concentration))
        if not self.is_linear:
            return power_spherical_log_normalizer(concentration, dim)
        return (vmf_log_normalizer if self.normalizer == "exact" else vmf_log_normalizer_paper)(concentration, dim)

    def scores_of_cosines(
        self, cosines: torch.Tensor, concentration: torch.Tensor, log_normalizers: torch.Tensor
    ) -> torch.Tensor:
        """Scores delta of cosines mu'z, elementwise, with kappa and G_d(kappa) of the texts; shapes broadcast."""
        if not self.has_concentration:
            return cosines
        if self.is_linear:
            return concentration * cosines + log_normalizers
        return concentration * torch.log1p(cosines.clamp(min=LOWEST_COSINE)) + log_normalizers

    def scores(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Scores `(num_texts, num_images)` of every text with every image; see [`pair_scores`]."""
        if text_embeds.ndim != 2 or image_embeds.ndim != 2 or text_embeds.shape[1] != image_embeds.shape[1]:
            raise ValueError(
                f"Expected text_embeds (num_texts, dim) and image_embeds (num_images, dim) of equal dim, got shapes "
                f"{tuple(text_embeds.shape)} and {tuple(image_embeds.shape)}."
            )
        with torch.autocast(device_type=text_embeds.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(text_embeds).dtype, at_least_float32(image_embeds).dtype)
            text_embeds, image_embeds = text_embeds.to(dtype), image_embeds.to(dtype)
            images = F.normalize(image_embeds, dim=-1)
            if not self.has_concentration:
                return F.normalize(text_embeds, dim=-1) @ images.T
            concentration = torch.linalg.vector_norm(text_embeds, dim=-1, keepdim=True)  # (num_texts, 1)
            log_normalizers = self.log_normalizer(concentration, text_embeds.shape[1])
            if self.is_linear:
                return text_embeds @ images.T + log_normalizers
            cosines = F.normalize(text_embeds, dim=-1) @ images.T  # (num_texts, num_images)
            return self.scores_of_cosines(cosines, concentration, log_normalizers)

    def loss(
        self,
        text_embeds: torch.Tensor,
        image_embeds: torch.Tensor,
        logit_scale: torch.Tensor | float,
        *,
        image_ids: torch.Tensor | None = None,
        tile_size: int | None = None,
        gather: bool = True,
    ) -> torch.Tensor:
        """The unified objective of a batch of matching pairs, in nats, of shape `()`; see [`unified_loss`]."""
        if text_embeds.shape != image_embeds.shape or text_embeds.ndim != 2:
            raise ValueError(
                "The objective needs matching pairs: text_embeds and image_embeds of one shape (batch, dim), got "
                f"{tuple(text_embeds.shape)} and {tuple(image_embeds.shape)}."
            )
        if image_ids is not None and image_ids.shape != text_embeds.shape[:1]:
            raise ValueError(f"image_ids must have shape ({text_embeds.shape[0]},), got {tuple(image_ids.shape)}.")
        if tile_size is not None and tile_size < 1:
            raise ValueError(f"tile_size must be at least 1, got {tile_size}.")

        spread = gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        offset = 0
        if spread:
            check_equal_batches(text_embeds.shape[0], text_embeds.device)
            offset = dist.get_rank() * text_embeds.shape[0]
        elif text_embeds.shape[0] < 2:
            raise ValueError(
                f"A contrastive objective needs at least two pairs in a batch, got {text_embeds.shape[0]}."
            )
        with torch.autocast(device_type=text_embeds.device.type, enabled=False):
            images, *texts = self._linear_forms(text_embeds, image_embeds, logit_scale)
            ids = image_ids
            if spread:  # texts travel, images stay; the columns' log-sum-exp is merged
                texts = [None if part is None else GatherRows.apply(part) for part in texts]
                ids = None if image_ids is None else GatherRows.apply(image_ids)
            return ContrastiveLoss.apply(images, *texts, ids, offset, tile_size, spread)

    def _linear_forms(
        self, text_embeds: torch.Tensor, image_embeds: torch.Tensor, logit_scale: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        What [`ContrastiveLoss`] takes: the unit vectors of the images, and of the texts the vectors `(batch, dim)`,
        scales and biases `(batch,)` whose logits are tau delta. All are of one dtype, float32 at least.
        """
        dtype = torch.promote_types(at_least_float32(text_embeds).dtype, at_least_float32(image_embeds).dtype)
        text_embeds, images = text_embeds.to(dtype), F.normalize(image_embeds.to(dtype), dim=-1)
        tau = torch.as_tensor(logit_scale, device=text_embeds.device).to(dtype)
        if not self.has_concentration:
            return images, tau * F.normalize(text_embeds, dim=-1), None, None
        concentration = torch.linalg.vector_norm(text_embeds, dim=-1)  # (batch,)
        biases = tau * self.log_normalizer(concentration, text_embeds.shape[1])
        if self.is_linear:
            return images, tau * text_embeds, None, biases
        return images, F.normalize(text_embeds, dim=-1), tau * concentration, biases


def pair_scores(
    text_embeds: torch.Tensor, image_embeds: torch.Tensor, *, distribution: str, normalizer: str = "exact"
) -> torch.Tensor:
    """
    Scores delta(r, s) of every text r with every image s (see the table at the top of this module).

    Args:
        text_embeds (`torch.Tensor` of shape `(num_texts, dim)`):
            Natural parameters eta; norm = concentration, direction = mean direction.
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Images; L2-normalised here, so any non-zero length is allowed.
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.

    Returns:
        `torch.Tensor` of shape `(num_texts, num_images)` in float32 (float64 if one input is): log-likelihood
        ratios against the uniform density in nats, or cosines in [-1, 1] for `"deterministic"`.

    Raises:
        ValueError: for an unknown name or for inputs that are not matrices of equal width.
    """
    return Likelihood(distribution, normalizer).scores(text_embeds, image_embeds)


def unified_loss(
    text_embeds: torch.Tensor,
    image_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    distribution: str,
    normalizer: str = "exact",
    image_ids: torch.Tensor | None = None,
    tile_size: int | None = None,
    gather: bool = True,
) -> torch.Tensor:
    """
    Unified InfoNCE objective over a batch of B matching pairs, with temperature tau = `logit_scale`:

        L = -1/(2B) sum_n [ ln exp(tau delta(n, n)) / sum_m exp(tau delta(n, m))
                          + ln exp(tau delta(n, n)) / sum_m exp(tau delta(m, n)) ]

    With `distribution="deterministic"` it is the contrastive loss of CLIP.

    Args:
        text_embeds (`torch.Tensor` of shape `(batch, dim)`): natural parameters eta.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): the matching images, row by row.
        logit_scale (`torch.Tensor` of shape `()` or `float`): tau > 0.
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.
        image_ids (`torch.Tensor` of shape `(batch,)`, *optional*):
            Integer identity of each pair's image. Other pairs of the same image are matches as well, so they are taken
            out of the denominators. Without it every other pair counts as a negative.
        tile_size (`int`, *optional*):
            Rows of the logit matrix computed at a time; the value and the gradients do not depend on it. By default
            chosen from the batch: up to 64 MiB of logits are kept for the backward pass, larger matrices are computed
            again tile by tile, with memory linear in the batch.
        gather (`bool`, *optional*, defaults to `True`):
            In a distributed run, contrast the pairs of this process with those of all processes. The mean of the
            processes' losses, and of their gradients as DistributedDataParallel takes it, equals that of one process
            with the whole batch.

    Returns:
        `torch.Tensor` of shape `()` in float32 (float64 for float64 input), in nats; ln B for uninformative scores.

    Raises:
        ValueError: for unknown names, shapes that disagree, fewer than two pairs, a tile size below one, or processes
            with unequal numbers of pairs.
    """
    return Likelihood(distribution, normalizer).loss(
        text_embeds, image_embeds, logit_scale, image_ids=image_ids, tile_size=tile_size, gather=gather
    )
