"""`torch.jit.trace`, under which a size of a shape is a tensor: the model, its scores and the distributions."""

import pytest
import torch

from modeling_asymvlm import AsymVLMModel, HypersphericalUniform, PowerSpherical, VonMisesFisher, pair_scores
from tests.support.tiny_backbones import tiny_images, tiny_texts


pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.torch.jit.trace:DeprecationWarning",
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # tracing reads all properties of a module
)
METHODS = {
    "log_prob": lambda law, points: law.log_prob(points),
    "entropy": lambda law, points: law.entropy(),
    "mean": lambda law, points: law.mean,
    "mode": lambda law, points: law.mode,
    "variance": lambda law, points: law.variance,
    "concentration": lambda law, points: law.concentration,
    "kl from uniform": lambda law, points: torch.distributions.kl_divergence(
        law, HypersphericalUniform(points.shape[-1])
    ),
}


def unit(seed: int, rows: int, dim: int) -> torch.Tensor:
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_a_traced_model_gives_the_logits_of_the_model(tiny_clip, distribution):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution=distribution)
    model.config.return_dict = False
    inputs = (
        tiny_texts("clip")["input_ids"],
        tiny_images("clip")["pixel_values"],
        tiny_texts("clip")["attention_mask"],
    )
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs)
        fewer = tuple(tensor[:3] for tensor in inputs)
        for found, expected in zip(traced(*fewer), model(*fewer), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_traced_scores_are_the_scores(distribution):
    def scores(text_embeds, image_embeds):
        return pair_scores(text_embeds, image_embeds, distribution=distribution)

    traced = torch.jit.trace(scores, (30 * unit(0, 4, 8), unit(1, 5, 8)))
    texts, images = 70 * unit(2, 3, 8), unit(3, 6, 8)
    torch.testing.assert_close(traced(texts, images), scores(texts, images))


@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("law", [VonMisesFisher, PowerSpherical], ids=lambda law: law.__name__)
def test_a_traced_distribution_is_the_distribution(law, name, dim):
    def of(eta, points):
        return METHODS[name](law.from_natural_parameter(eta), points)

    traced = torch.jit.trace(of, (5 * unit(0, 4, dim), unit(1, 4, dim)))
    eta, points = 9 * unit(2, 3, dim), unit(3, 3, dim)
    torch.testing.assert_close(traced(eta, points), of(eta, points))


@pytest.mark.parametrize("dim", [2, 16])
def test_the_uniform_distribution_is_traced(dim):
    def of(points):
        return HypersphericalUniform(points.shape[-1]).log_prob(points)

    traced = torch.jit.trace(of, unit(0, 4, dim))
    torch.testing.assert_close(traced(unit(1, 3, dim)), of(unit(1, 3, dim)))
