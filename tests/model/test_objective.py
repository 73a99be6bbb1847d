"""Pair scores and the unified objective against literal formulas, CLIP's own loss and other tilings and processes."""

import itertools
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from scipy.special import gammaln, ive

from modeling_asymvlm.model.objective import DISTRIBUTIONS, pair_scores, unified_loss


def make_embeddings(seed: int, texts: int, images: int, dim: int, dtype=torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(texts, dim, generator=generator, dtype=dtype), dim=-1)
    concentration = 1 + 20 * torch.rand(texts, 1, generator=generator, dtype=dtype)
    return concentration * directions, torch.randn(images, dim, generator=generator, dtype=dtype)


def vmf_log_density(kappa: float, cosine: float, dim: int) -> float:
    order = dim / 2 - 1
    log_bessel = math.log(ive(order, kappa)) + kappa
    return order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_bessel + kappa * cosine


def power_spherical_log_density(kappa: float, cosine: float, dim: int) -> float:
    beta = (dim - 1) / 2
    alpha = beta + kappa
    log_constant = gammaln(alpha + beta) - gammaln(alpha) - (alpha + beta) * math.log(2) - beta * math.log(math.pi)
    return log_constant + kappa * math.log1p(cosine)


def uniform_log_density(dim: int) -> float:
    return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)


@pytest.mark.parametrize(
    ("distribution", "log_density"), [("vmf", vmf_log_density), ("power_spherical", power_spherical_log_density)]
)
@pytest.mark.parametrize("dim", [3, 8, 24])
def test_pair_scores_are_log_likelihood_ratios_against_uniform(distribution, log_density, dim):
    text_embeds, images = make_embeddings(dim, 5, 4, dim)
    scores = pair_scores(text_embeds, images, distribution=distribution)
    assert scores.shape == (5, 4)
    for text, image in itertools.product(range(5), range(4)):
        kappa = text_embeds[text].norm().item()
        cosine = torch.cosine_similarity(text_embeds[text], images[image], dim=0).item()
        expected = log_density(kappa, cosine, dim) - uniform_log_density(dim)
        assert scores[text, image].item() == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_deterministic_pair_scores_are_cosines():
    text_embeds, images = make_embeddings(2, 5, 4, 24)
    scores = pair_scores(text_embeds, images, distribution="deterministic")
    expected = torch.cosine_similarity(text_embeds[:, None], images[None], dim=-1)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_text_without_concentration_scores_zero_and_has_finite_gradients(distribution):
    text_embeds = torch.zeros(2, 8, requires_grad=True)
    scores = pair_scores(text_embeds, torch.eye(8)[:3], distribution=distribution)
    scores.square().sum().backward()
    assert scores.abs().max() == 0
    assert torch.isfinite(text_embeds.grad).all()


def test_power_spherical_scores_stay_finite_opposite_to_the_text():
    text_embeds, _ = make_embeddings(3, 200, 1, 512, torch.float32)
    text_embeds.requires_grad_()
    scores = pair_scores(text_embeds, -text_embeds.detach(), distribution="power_spherical").diagonal()
    scores.sum().backward()
    kappa = text_embeds.detach().norm(dim=-1)
    assert torch.isfinite(text_embeds.grad).all()
    torch.testing.assert_close(scores.detach(), kappa * math.log(1e-6), rtol=0.2, atol=0)


def test_paper_normalizer_moves_vmf_scores_by_one_number_a_text():
    text_embeds, images = make_embeddings(4, 6, 5, 8)
    exact = pair_scores(text_embeds, images, distribution="vmf")
    paper = pair_scores(text_embeds, images, distribution="vmf", normalizer="paper")
    difference = paper - exact
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-12)
    assert difference.abs().min() > 1e-4
    law = {"distribution": "power_spherical"}
    exact, paper = (pair_scores(text_embeds, images, normalizer=name, **law) for name in ("exact", "paper"))
    assert torch.equal(exact, paper)


def literal_loss(text_embeds, image_embeds, logit_scale, distribution, image_ids=None):
    """The unified objective as printed in the paper, pair by pair."""
    logits = logit_scale * pair_scores(text_embeds, image_embeds, distribution=distribution)
    batch, total = len(logits), 0.0
    for n in range(batch):
        others = [m for m in range(batch) if m == n or image_ids is None or image_ids[m] != image_ids[n]]
        total = total + logits[n, n] - torch.logsumexp(torch.stack([logits[n, m] for m in others]), 0)
        total = total + logits[n, n] - torch.logsumexp(torch.stack([logits[m, n] for m in others]), 0)
    return -total / (2 * batch)


def value_and_gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("image_ids", [None, torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5])])
@pytest.mark.parametrize("tile_size", [None, 1, 2, 4, 9, 100])
def test_unified_loss_equals_the_literal_formula_under_any_tiling(distribution, image_ids, tile_size):
    text_embeds, images = make_embeddings(5, 9, 9, 8)
    if image_ids is not None:
        images = images[image_ids]
    tensors = (text_embeds, images, torch.tensor(1.7, dtype=torch.float64))
    expected = value_and_gradients(lambda t, i, s: literal_loss(t, i, s, distribution, image_ids), *tensors)
    actual = value_and_gradients(
        lambda t, i, s: unified_loss(t, i, s, distribution=distribution, image_ids=image_ids, tile_size=tile_size),
        *tensors,
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_deterministic_objective_is_the_loss_of_clip(tiny_clip, batch):
    with torch.no_grad():
        native = tiny_clip(**batch, return_loss=True)
        loss = unified_loss(
            native.text_embeds, native.image_embeds, tiny_clip.logit_scale.exp(), distribution="deterministic"
        )
    torch.testing.assert_close(loss, native.loss)


def test_uninformative_scores_cost_the_logarithm_of_the_batch():
    images = torch.randn(7, 8, generator=torch.Generator().manual_seed(7))
    loss = unified_loss(torch.zeros(7, 8), images, 1.0, distribution="vmf")
    assert loss.item() == pytest.approx(math.log(7), abs=1e-6)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_inputs_are_computed_in_float32(distribution, dtype, autocast):
    text_embeds, images = make_embeddings(8, 16, 16, 512, torch.float32)
    text_embeds, images = text_embeds.to(dtype), images.to(dtype)
    expected = unified_loss(text_embeds.double(), images.double(), 2.0, distribution=distribution)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        actual = unified_loss(text_embeds, images, 2.0, distribution=distribution)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distribution": "gauss"}, "Unknown distribution 'gauss': choose one of vmf, power_spherical, deterministic"),
        ({"distribution": "vmf", "normalizer": "rough"}, "Unknown normalizer 'rough': choose one of exact, paper"),
        ({"distribution": "vmf", "image_ids": torch.arange(3)}, r"image_ids must have shape \(4,\), got \(3,\)"),
        ({"distribution": "vmf", "tile_size": 0}, "tile_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    text_embeds, images = make_embeddings(9, 4, 4, 8)
    with pytest.raises(ValueError, match=message):
        unified_loss(text_embeds, images, 1.0, **arguments)


def test_float32_images_meet_float64_texts():
    text_embeds, images = make_embeddings(12, 4, 4, 8)
    mixed = pair_scores(text_embeds, images.float(), distribution="vmf")
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, pair_scores(text_embeds, images, distribution="vmf"), rtol=1e-6, atol=1e-6)


def test_batches_that_are_no_pairs_are_refused():
    text_embeds, images = make_embeddings(10, 4, 3, 8)
    with pytest.raises(ValueError, match=r"matching pairs.*\(4, 8\) and \(3, 8\)"):
        unified_loss(text_embeds, images, 1.0, distribution="vmf")
    with pytest.raises(ValueError, match="at least two pairs in a batch, got 1"):
        unified_loss(text_embeds[:1], images[:1], 1.0, distribution="vmf")
    with pytest.raises(ValueError, match=r"equal dim, got shapes \(4, 8\) and \(3, 7\)"):
        pair_scores(text_embeds, images[:, :7], distribution="vmf")


CASES = list(itertools.product(["vmf", "power_spherical"], [None, 1, 3]))


def worker(rank: int, world_size: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    text_embeds, images = make_embeddings(11, 8, 8, 8)
    image_ids = torch.tensor([0, 1, 1, 2, 3, 0, 3, 4])
    rows = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    results = {}
    for case, (distribution, tile_size) in enumerate(CASES):
        law = {"distribution": distribution, "image_ids": image_ids[rows], "tile_size": tile_size}
        values = value_and_gradients(
            lambda texts, images, scale, law=law: unified_loss(texts, images, scale, **law),
            text_embeds[rows],
            images[image_ids][rows],
            torch.tensor(1.3, dtype=torch.float64),
        )
        results |= {f"{case}.{index}": tensor for index, tensor in enumerate(values)}
    save_file(results, f"{folder}/{rank}.safetensors")
    try:
        unified_loss(text_embeds[: 2 + rank], images[: 2 + rank], 1.0, distribution="vmf")
    except ValueError as error:
        assert "same number of pairs" in str(error)
    else:
        raise AssertionError("unequal batches were accepted")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_give_the_loss_and_gradients_of_one(tmp_path, world_size):
    mp.spawn(worker, args=(world_size, str(tmp_path)), nprocs=world_size)
    text_embeds, images = make_embeddings(11, 8, 8, 8)
    image_ids = torch.tensor([0, 1, 1, 2, 3, 0, 3, 4])
    files = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(world_size)]
    for case, (distribution, _) in enumerate(CASES):
        value, text_gradient, image_gradient, scale_gradient = value_and_gradients(
            lambda t, i, s, law=distribution: literal_loss(t, i, s, law, image_ids),
            text_embeds,
            images[image_ids],
            torch.tensor(1.3, dtype=torch.float64),
        )
        values, texts, image_parts, scales = ([file[f"{case}.{index}"] for file in files] for index in range(4))
        # DistributedDataParallel takes the mean over processes of the gradients of whatever the processes share.
        torch.testing.assert_close(torch.stack(values).mean(), value)
        torch.testing.assert_close(torch.stack(scales).mean(), scale_gradient)
        torch.testing.assert_close(torch.cat(texts) / world_size, text_gradient)
        torch.testing.assert_close(torch.cat(image_parts) / world_size, image_gradient)
