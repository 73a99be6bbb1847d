"""`config.law`: one object for a model's distribution and normaliser."""

import dataclasses

import pytest
import torch

from modeling_asymvlm import AsymVLMConfig, PowerSpherical, VonMisesFisher, pair_scores, unified_loss
from modeling_asymvlm.model.log_normalizers import (
    power_spherical_log_normalizer,
    vmf_log_normalizer,
    vmf_log_normalizer_paper,
)
from modeling_asymvlm.model.objective import DISTRIBUTIONS, NORMALIZERS, Likelihood


DIM = 6
EVERY = [Likelihood(distribution, normalizer) for distribution in DISTRIBUTIONS for normalizer in NORMALIZERS]


def embeddings(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    texts, images = torch.randn(2, 5, DIM, generator=generator, dtype=torch.float64)
    return 7 * texts, images


@pytest.mark.parametrize("law", EVERY, ids=str)
def test_the_object_gives_what_the_functions_give(law):
    texts, images = embeddings()
    names = dataclasses.asdict(law)
    assert torch.equal(law.scores(texts, images), pair_scores(texts, images, **names))
    ids = torch.tensor([0, 0, 1, 2, 3])
    assert torch.equal(
        law.loss(texts, images, 1.5, image_ids=ids, tile_size=2, gather=False),
        unified_loss(texts, images, 1.5, image_ids=ids, tile_size=2, gather=False, **names),
    )


@pytest.mark.parametrize("law", EVERY, ids=str)
def test_scores_of_cosines_are_the_scores_of_pairs(law):
    texts, images = embeddings(1)
    cosines = torch.cosine_similarity(texts[:, None], images, dim=-1)
    concentration = texts.norm(dim=-1, keepdim=True)
    found = law.scores_of_cosines(cosines, concentration, law.log_normalizer(concentration, DIM))
    torch.testing.assert_close(found, law.scores(texts, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", EVERY, ids=str)
def test_is_linear_says_whether_scores_are_linear_in_the_unit_vector_of_the_image(law):
    texts, images = embeddings(2)
    first, second = torch.nn.functional.normalize(images[:2], dim=-1)
    middle = torch.nn.functional.normalize(first + second, dim=-1)
    share = (middle @ first) / (first @ first + first @ second)  # middle = share (first + second)
    at_zero = law.log_normalizer(texts.norm(dim=-1), DIM)
    of_first, of_second, of_middle = law.scores(texts, torch.stack([first, second, middle])).T - at_zero
    assert torch.allclose(of_middle, share * (of_first + of_second), rtol=1e-9, atol=1e-9) == law.is_linear


def test_log_normalizers_are_those_of_the_names():
    kappa = torch.tensor([0.0, 0.5, 30.0])
    for law, expected in {
        Likelihood("vmf"): vmf_log_normalizer(kappa, DIM),
        Likelihood("vmf", "paper"): vmf_log_normalizer_paper(kappa, DIM),
        Likelihood("power_spherical"): power_spherical_log_normalizer(kappa, DIM),
        Likelihood("power_spherical", "paper"): power_spherical_log_normalizer(kappa, DIM),
        Likelihood("deterministic"): torch.zeros(3),
    }.items():
        assert torch.equal(law.log_normalizer(kappa, DIM), expected), law
    assert Likelihood("deterministic").log_normalizer(kappa.half(), DIM).dtype == torch.float32


def test_the_class_of_a_distribution_and_the_refusal_where_there_is_none():
    for name, kind in {"vmf": VonMisesFisher, "power_spherical": PowerSpherical}.items():
        assert Likelihood(name).has_concentration and Likelihood(name).distribution_class is kind
        Likelihood(name).check_concentration()
    points = Likelihood("deterministic")
    assert not points.has_concentration
    remedy = "gives points, not distributions: .* trained with distribution='vmf' or 'power_spherical'"
    with pytest.raises(ValueError, match=f"^A model with distribution='deterministic' {remedy}"):
        _ = points.distribution_class
    with pytest.raises(ValueError, match=f"^'some/head' with distribution='deterministic' {remedy}"):
        points.check_concentration("'some/head'")


@pytest.mark.parametrize(("names", "message"), [(("gauss",), "'gauss': choose"), (("vmf", "x"), "'x': choose one of")])
def test_unknown_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        Likelihood(*names)


def test_the_law_of_a_configuration_follows_its_values_and_is_not_saved():
    config = AsymVLMConfig(projection_dim=4, distribution="vmf", normalizer="paper")
    assert config.law == Likelihood("vmf", "paper")
    config.distribution = "power_spherical"
    assert config.law == Likelihood("power_spherical", "paper")
    assert "law" not in config.to_dict()
    config.distribution = "gauss"
    with pytest.raises(ValueError, match="Unknown distribution 'gauss'"):
        _ = config.law
    with pytest.raises(AttributeError):
        config.law = Likelihood("vmf")
