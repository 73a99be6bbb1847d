"""Several prompts as one class: the distributions of its prompts, fused.

A class is described by n prompts, each a law with natural parameter eta_i = kappa_i mu_i. There are three ways to make
one law, or one score, of them.

**`product`**, the tempered product of the densities, a logarithmic opinion pool (Genest & Zidek 1986, "Combining
probability distributions: a critique and an annotated bibliography", Statistical Science 1):

    p_class(z) proportional to (prod_i p_i(z))^(1/m),
    m = 1 + (n_eff - 1) rho,    n_eff = (sum_i kappa_i)^2 / sum_i kappa_i^2

Natural parameters add: eta_class = sum_i eta_i / m. A prompt weighs by its concentration, so that a vague one loses
its weight by itself, and for kappa_i -> 0 it changes nothing at all: n_eff is the effective number of prompts (Kish
1965, "Survey sampling"), n for equal concentrations. rho is the correlation of what the prompts say: n equally
correlated sources are worth n / (1 + (n - 1) rho) independent ones (Clemen & Winkler 1985, "Limits for the precision
and value of information from dependent sources", Operations Research 33).

- rho = 0, independent prompts: the plain product, whose concentration grows with the number of prompts.
- rho = 1, all prompts say the same: a prompt given twice counts once, and the concentration stays one that the model
  has learned, between the smallest and the largest of the prompts where these agree, less where they disagree.

For von Mises-Fisher the law of the class is exact. A product of Power Spherical densities is none; it is projected on
the Power Spherical law of natural parameter eta_class, whose log-density has the same harmonics of degree one (see
[`~distributions.product`]). With the expansion of ln(1 + t) in Gegenbauer polynomials P_n of `divergences.py`, whose
coefficients are c_n = (-1)^(n-1) (1/n + 1/(n + d-2)), the log-densities differ, up to a constant, by

    sum_{n>=2} c_n [ sum_i kappa_i/m P_n(mu_i'z) - kappa_class P_n(mu_class'z) ].

It vanishes for equal directions. As the mean of P_n(a'z) P_n(b'z) over the sphere is P_n(a'b) / N_n, where N_n is the
number of harmonics of degree n, (d-1)(d+2)/2 for n = 2, the difference is small in many dimensions.

**`mean_direction`**, prompts count alike: the normalised mean of the mean directions, as in the prompt ensembles of
CLIP (Radford et al. 2021, "Learning transferable visual models from natural language supervision", arXiv 2103.00020,
section 3.1.4), with the mean concentration.

**`mean_log_likelihood`**, prompts count alike: the mean of the log-likelihoods of an image under each prompt. For von
Mises-Fisher it ranks images as the product does; classes differ by a constant, which falls with the disagreement of
their prompts. It keeps every prompt, and is no law.
"""

import torch
import torch.nn.functional as F

from ..model.objective import Likelihood


FUSIONS = ("product", "mean_direction", "mean_log_likelihood")

SCORES_AT_A_TIME = 2**24  # of images with prompts


def check_fusion(fusion: str, prompt_correlation: float, law: Likelihood) -> None:
    """Raises `ValueError` for an unknown fusion, one that points do not have, or a correlation outside [0, 1]."""
    if fusion not in FUSIONS:
        raise ValueError(f"Unknown fusion {fusion!r}: choose one of {', '.join(FUSIONS)}.")
    if not 0 <= prompt_correlation <= 1:
        raise ValueError(
            f"prompt_correlation is {prompt_correlation}, but must be from 0, for independent prompts, to 1, for "
            "prompts that say the same."
        )
    if fusion == "product" and not law.has_concentration:
        raise ValueError(
            "The texts of a deterministic model are points without a concentration to weigh by, so that "
            "fusion='product' has no meaning: pass fusion='mean_direction'."
        )


def sum_by_class(values: torch.Tensor, prompt_class: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Sums of the rows `(num_prompts, ...)` of each class, `(num_classes, ...)`."""
    return values.new_zeros((num_classes, *values.shape[1:])).index_add(0, prompt_class, values)


def prompt_weights(
    prompt_embeds: torch.Tensor, prompt_class: torch.Tensor, num_classes: int, *, fusion: str
) -> torch.Tensor:
    """
    The share of each prompt in its class: kappa_i / sum kappa for the product, and 1 / n otherwise. Where all prompts
    of a class have concentration 0, they share alike.

    Args:
        prompt_embeds (`torch.Tensor` of shape `(num_prompts, dim)`): natural parameters.
        prompt_class (`torch.LongTensor` of shape `(num_prompts,)`): the class of each prompt; every class has some.
        num_classes (`int`): number of classes.
        fusion (`str`): one of `FUSIONS`.

    Returns:
        `torch.Tensor` of shape `(num_prompts,)`, which sums to one over each class.
    """
    alike = torch.ones_like(prompt_embeds[:, 0])
    concentration = torch.linalg.vector_norm(prompt_embeds, dim=-1) if fusion == "product" else alike
    totals = sum_by_class(concentration, prompt_class, num_classes)[prompt_class]
    counts = sum_by_class(alike, prompt_class, num_classes)[prompt_class]
    return torch.where(totals > 0, concentration / totals, 1 / counts)


def fuse_prompts(
    prompt_embeds: torch.Tensor,
    prompt_class: torch.Tensor,
    num_classes: int,
    *,
    fusion: str = "product",
    prompt_correlation: float = 1.0,
) -> torch.Tensor:
    """
    Natural parameters of the classes, for the fusions that give a law; see the top of this module.

    Args:
        prompt_embeds, prompt_class, num_classes: as for [`prompt_weights`].
        fusion (`str`, *optional*, defaults to `"product"`): `"product"` or `"mean_direction"`.
        prompt_correlation (`float`, *optional*, defaults to 1.0): rho in [0, 1] of the product.

    Returns:
        `torch.Tensor` of shape `(num_classes, dim)`; its norm is the concentration of the class.
    """
    concentration = torch.linalg.vector_norm(prompt_embeds, dim=-1, keepdim=True)
    if fusion == "product":
        weights = prompt_weights(prompt_embeds, prompt_class, num_classes, fusion=fusion)
        effective_number = 1 / sum_by_class(weights.square(), prompt_class, num_classes)
        temper = 1 + (effective_number - 1) * prompt_correlation
        return sum_by_class(prompt_embeds, prompt_class, num_classes) / temper[:, None]
    counts = sum_by_class(torch.ones_like(concentration), prompt_class, num_classes)
    mean_concentration = sum_by_class(concentration, prompt_class, num_classes) / counts
    directions = sum_by_class(F.normalize(prompt_embeds, dim=-1), prompt_class, num_classes)
    return mean_concentration * F.normalize(directions, dim=-1)


def mean_log_likelihood(
    prompt_embeds: torch.Tensor,
    prompt_class: torch.Tensor,
    num_classes: int,
    image_embeds: torch.Tensor,
    law: Likelihood,
) -> torch.Tensor:
    """
    The mean over the prompts of each class of their scores with each image.

    Args:
        prompt_embeds, prompt_class, num_classes: as for [`prompt_weights`].
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`): of any non-zero length.
        law (`Likelihood`): of the model.

    Returns:
        `torch.Tensor` of shape `(num_classes, num_images)`.
    """
    weights = prompt_weights(prompt_embeds, prompt_class, num_classes, fusion="mean_log_likelihood")[:, None]
    parts = []
    for some in image_embeds.split(max(1, SCORES_AT_A_TIME // len(prompt_embeds))):
        scores = law.scores(prompt_embeds, some)
        parts.append(sum_by_class(weights * scores, prompt_class, num_classes))
    return torch.cat(parts, dim=1)
