"""The methods of the comparison: closed forms against independent computation, and training on planted ambiguity."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from benchmarks.comparison.baselines import asymvlm, correction, gaussian, nnn, pcmepp, pfe, probvlm, prolip
from benchmarks.comparison.baselines.methods import METHODS
from benchmarks.comparison.baselines.training import Training, train, validation_loss
from modeling_asymvlm.evaluation import rank_correlation
from modeling_asymvlm.model.objective import pair_scores, unified_loss
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laws(texts: int, images: int, dim: int) -> tuple[torch.Tensor, ...]:
    """Means and log-variances of texts and images."""
    shapes = ((texts, dim), (texts, dim), (images, dim), (images, dim))
    return tuple(normal(*shape, seed=seed) for seed, shape in enumerate(shapes))


# Closed forms


def test_closed_form_sampled_distance_is_the_mean_of_samples():
    text_mean, text_log_variance, image_mean, image_log_variance = laws(2, 3, 4)
    closed = pcmepp.closed_form_sampled_distance(text_mean, text_log_variance, image_mean, image_log_variance)
    samples = 100_000
    texts = text_mean + (text_log_variance / 2).exp() * normal(samples, 2, 4, seed=8)
    images = image_mean + (image_log_variance / 2).exp() * normal(samples, 3, 4, seed=9)
    drawn = (texts[:, :, None] - images[:, None]).square().sum(-1)
    assert ((drawn.mean(0) - closed).abs() < 5 * drawn.std(0) / math.sqrt(samples)).all()


def test_pseudo_positives_are_candidates_that_score_no_lower_than_the_first_match():
    logits = normal(6, 6)
    logits[0, 3] = logits[0, 0]
    matches = torch.eye(6, dtype=torch.bool)
    matches[2, 3] = matches[3, 2] = True
    marked = pcmepp.with_pseudo_positives(logits, matches)
    for row in range(6):
        first = int(matches[row].nonzero()[0])
        for column in range(6):
            expected = bool(matches[row, column]) or logits[row, column] >= logits[row, first]
            assert marked[row, column] == expected


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_pcmepp_loss_is_the_sum_of_its_terms(weight):
    """Matches once for each direction, pseudo-positives of each direction by weight, bottleneck of each side."""
    torch.manual_seed(0)
    method = pcmepp.PCMEPlusPlus(6, pseudo_positive_weight=weight).eval()
    batch = {"text_features": normal(8, 6).float(), "image_features": normal(8, 6, seed=1).float()}
    batch["image_ids"] = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    means_and_log_variances = method.heads(batch["text_features"], batch["image_features"])
    logits = method.shift - method.scale * pcmepp.closed_form_sampled_distance(*means_and_log_variances)
    matches = batch["image_ids"][:, None] == batch["image_ids"]
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = 2 * entropy(logits, matches.float())
    for direction in (logits, logits.T):
        expected = expected + weight * entropy(direction, pcmepp.with_pseudo_positives(direction, matches).float())
    text_mean, text_log_variance, image_mean, image_log_variance = means_and_log_variances
    for mean, log_variance in ((text_mean, text_log_variance), (image_mean, image_log_variance)):
        expected = expected + 1e-4 * gaussian.divergence_from_standard_normal(mean, log_variance)
    assert torch.allclose(method.loss(batch), expected)


@pytest.mark.parametrize("seed", range(3))
def test_pcmepp_loss_with_several_captions_of_an_image_is_that_of_the_public_code(seed):
    """
    An oracle in float64 with one pair at a time. A pseudo-positive is measured by the first match of its row, images
    being rows for one half of it and captions for the other.
    """
    torch.manual_seed(seed)
    method = pcmepp.PCMEPlusPlus(6).double().eval()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, (16,), generator=generator)
    images = normal(5, 6, seed=seed)[ids]
    batch = {"text_features": images + normal(16, 6, seed=seed + 9), "image_features": images, "image_ids": ids}
    with torch.no_grad():
        loss = method.loss(batch).item()
        text_mean, text_log_variance, image_mean, image_log_variance = method.heads(
            batch["text_features"], batch["image_features"]
        )
    logit = np.empty((16, 16))  # [image, caption]
    for image in range(16):
        for text in range(16):
            distance = (image_mean[image] - text_mean[text]).square().sum()
            distance = distance + image_log_variance[image].exp().sum() + text_log_variance[text].exp().sum()
            logit[image, text] = 5.0 - 5.0 * distance.item()
    same = (ids[:, None] == ids).numpy()

    def cross_entropy(target):
        return np.mean(np.logaddexp(0, logit) - target * logit)

    rows, columns = np.array(same), np.array(same)
    for own in range(16):
        first = next(other for other in range(16) if same[own, other])
        for other in range(16):
            rows[own, other] |= logit[own, other] >= logit[own, first]
            columns[other, own] |= logit[other, own] >= logit[first, own]
    expected = 2 * cross_entropy(same) + 0.1 * (cross_entropy(rows) + cross_entropy(columns))
    for mean, log_variance in ((text_mean, text_log_variance), (image_mean, image_log_variance)):
        expected += 1e-4 * 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).mean().item()
    assert (rows != same).any() and loss == pytest.approx(expected, rel=1e-12)


def test_bottleneck_is_the_divergence_from_a_standard_normal():
    mean, log_variance = normal(5, 3), normal(5, 3, seed=1)
    law = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(law, standard).mean()
    assert torch.allclose(gaussian.divergence_from_standard_normal(mean, log_variance), expected)


@pytest.mark.parametrize(("first", "second"), [((0.3, 0.5), (-1.0, 2.0)), ((2.0, 0.1), (2.1, 0.1))])
def test_mutual_likelihood_score_is_the_integral_of_the_product(first, second):
    """In one dimension by quadrature; laws are given by mean and standard deviation."""
    product = integrate.quad(lambda x: stats.norm.pdf(x, *first) * stats.norm.pdf(x, *second), -10, 10, points=[2])[0]
    tensors = [
        torch.tensor([value], dtype=torch.float64) for law in (first, second) for value in (law[0], law[1] ** 2)
    ]
    assert pfe.mutual_likelihood_score(*tensors).item() == pytest.approx(math.log(product), abs=1e-8)


def test_mutual_likelihood_score_is_that_of_the_difference_of_independent_samples():
    text_mean, text_log_variance, image_mean, image_log_variance = laws(4, 4, 5)
    score = pfe.mutual_likelihood_score(text_mean, text_log_variance.exp(), image_mean, image_log_variance.exp())
    deviation = (text_log_variance.exp() + image_log_variance.exp()).sqrt()
    expected = stats.norm.logpdf(text_mean, image_mean, deviation).sum(-1)
    assert np.allclose(score, expected)


def test_pairwise_sigmoid_loss_equals_a_loop():
    logits = normal(4, 4)
    matches = torch.eye(4, dtype=torch.bool)
    matches[0, 1] = matches[1, 0] = True
    total = 0.0
    for text in range(4):
        for image in range(4):
            sign = 1 if matches[text, image] else -1
            total += math.log1p(math.exp(-sign * logits[text, image].item()))
    assert prolip.pairwise_sigmoid_loss(logits, matches).item() == pytest.approx(total / 4)


def test_pairwise_scores_equal_a_loop():
    laws_of_both = laws(3, 2, 4)
    scores = prolip.pairwise_scores(*laws_of_both)
    text_mean, text_log_variance, image_mean, image_log_variance = laws_of_both
    for text in range(3):
        for image in range(2):
            trace = text_log_variance[text].exp().sum() + image_log_variance[image].exp().sum()
            assert scores[text, image] == pytest.approx((text_mean[text] @ image_mean[image] - trace / 2).item())


@pytest.mark.parametrize(("first", "second"), [((0.3, 0.5), (-1.0, 2.0)), ((0.0, 1.5), (0.4, 0.7))])
def test_inclusion_is_the_integral_of_the_squared_density_times_the_other(first, second):
    integral = integrate.quad(lambda x: stats.norm.pdf(x, *first) ** 2 * stats.norm.pdf(x, *second), -10, 10)[0]
    tensors = [
        torch.tensor(value, dtype=torch.float64) for law in (first, second) for value in (law[0], 2 * math.log(law[1]))
    ]
    assert prolip.log_inclusion(*tensors).item() == pytest.approx(math.log(integral), abs=1e-8)


def test_a_narrow_law_lies_in_a_wide_one_and_not_the_other_way_round():
    narrow, wide = (torch.zeros(3, 4), torch.full((3, 4), -9.0)), (torch.full((3, 4), 0.01), torch.full((3, 4), -5.0))
    assert prolip.inclusion_loss(*narrow, *wide) < 1e-6 < 1 < prolip.inclusion_loss(*wide, *narrow)


@pytest.mark.parametrize("beta", [0.4, 1.0, 2.0, 5.0])
def test_generalised_gaussian_is_that_of_scipy(beta):
    mean, target = normal(50), normal(50, seed=1)
    alpha = normal(50, seed=2).exp()
    values = probvlm.negative_log_likelihood(mean, 1 / alpha, torch.full_like(mean, beta), target)
    assert np.allclose(values, -stats.gennorm.logpdf(target, beta, loc=mean, scale=alpha), rtol=1e-10)
    variance = probvlm.variance(1 / alpha, torch.full_like(mean, beta))
    assert np.allclose(variance, stats.gennorm.var(beta, scale=alpha), rtol=1e-8)


# AsymVLM and its ablations


def test_overlap_is_the_integral_of_both_densities_on_the_circle():
    angles, concentrations = [0.3, 2.0], [1.5, 4.0]
    eta = [
        torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64) * kappa
        for angle, kappa in zip(angles, concentrations, strict=True)
    ]
    densities = [stats.vonmises(kappa, loc=angle) for angle, kappa in zip(angles, concentrations, strict=True)]
    overlap = integrate.quad(lambda x: densities[0].pdf(x) * densities[1].pdf(x), -math.pi, math.pi)[0]
    expected = math.log(overlap * 2 * math.pi)  # against 1 / (2 pi), the overlap with the uniform law
    assert asymvlm.log_overlap(*eta).item() == pytest.approx(expected, abs=1e-8)


def test_overlap_with_a_certain_image_is_the_log_likelihood():
    texts, images = 5 * normal(4, 6), torch.nn.functional.normalize(normal(3, 6, seed=1), dim=-1)
    overlap = asymvlm.log_overlap(texts, 1e7 * images)
    assert torch.allclose(overlap, pair_scores(texts, images, distribution="vmf"), atol=1e-4)


def test_overlap_of_opposite_laws_of_one_length_is_finite_with_its_gradient():
    text = torch.tensor([[3.0, 4.0]], requires_grad=True)
    overlap = asymvlm.log_overlap(text, torch.tensor([[-3.0, -4.0]])).sum()
    overlap.backward()
    assert torch.isfinite(overlap) and torch.isfinite(text.grad).all()


@pytest.mark.parametrize("ids", [None, [0, 0, 1, 2, 1]])
@pytest.mark.parametrize("distribution", ["vmf", "power_spherical"])
def test_contrastive_loss_is_the_unified_objective(distribution, ids):
    texts, images, ids = normal(5, 4), normal(5, 4, seed=1), ids and torch.tensor(ids)
    expected = unified_loss(texts, images, 2.0, distribution=distribution, image_ids=ids)
    logits = 2.0 * pair_scores(texts, images, distribution=distribution)
    assert torch.allclose(asymvlm.contrastive_loss(logits, ids), expected)


def test_sides_are_exchanged_and_normalisers_left_out():
    texts, images = normal(3, 6).float(), normal(4, 6, seed=1).float()
    settings = {"num_hidden_layers": 1, "hidden_size": 8, "distribution": "vmf"}
    torch.manual_seed(0)
    image_side = asymvlm.AsymVLM(6, sides=("image",), **settings).eval()
    eta = image_side.encode("image", images)
    expected = pair_scores(eta, texts, distribution="vmf").T
    assert torch.allclose(image_side.scores(image_side.encode("text", texts), eta), expected)

    bare = asymvlm.AsymVLM(6, normalizer="none", **settings).eval()
    eta = bare.encode("text", texts)
    inner = eta @ torch.nn.functional.normalize(images, dim=-1).T
    assert torch.allclose(bare.scores(eta, images), inner, atol=1e-5)


def test_two_sides_are_refused_where_no_closed_form_exists():
    with pytest.raises(ValueError, match="vmf"):
        asymvlm.AsymVLM(6, sides=("text", "image"), distribution="power_spherical")


# Training


def planted_split(pairs: int, seed: int, dim: int = 16) -> EmbeddingSplit:
    """Images are random directions; a text is its image's plus noise, whose amount its last coordinates tell."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.nn.functional.normalize(torch.randn(pairs, dim - 2, generator=generator), dim=-1)
    noise = torch.rand(pairs, generator=generator)
    texts = images + noise[:, None] * torch.randn(pairs, dim - 2, generator=generator) / 3
    sign = torch.stack([noise, 1 - noise], dim=1) / 2
    return EmbeddingSplit(
        image_ids=[str(row) for row in range(pairs)],
        image_features=torch.cat([images, torch.zeros(pairs, 2)], dim=1),
        captions=["a text"] * pairs,
        text_features=torch.cat([texts, sign], dim=1),
        text_image_index=torch.arange(pairs),
        columns={"ambiguity": noise.double().numpy()},
    )


@pytest.fixture(scope="module")
def planted() -> dict[str, EmbeddingSplit]:
    return {
        name: planted_split(pairs, seed)
        for seed, (name, pairs) in enumerate([("train", 768), ("validation", 256), ("test", 256)])
    }


def fitted(name: str, splits: dict[str, EmbeddingSplit], **training):
    """A method of the comparison, with a small head and trained for a short time with small batches."""
    entry = METHODS[name]
    torch.manual_seed(0)
    small = {"hidden_size": 128} if "distribution" in entry.settings else {}
    method = entry.build(splits["train"].dim, **{**entry.settings, **small})
    settings = Training(**{"learning_rate": 3e-3, "num_epochs": 8, "batch_size": 128, **training})
    before = validation_loss(method, splits["validation"], settings.batch_size, "cpu")
    return method, train(method, splits, settings, seed=0), before


@pytest.mark.parametrize("name", METHODS)
def test_every_method_predicts(name, planted):
    entry = METHODS[name]
    settings = {"logit_scale": 100.0} if name == "cosine" else entry.settings
    method = entry.build(16, **settings).eval()
    method.fit(planted)
    predictions = method.predict(planted["validation"])
    assert predictions.scores.shape == (256, 256) and torch.isfinite(predictions.scores).all()
    assert predictions.text_uncertainty or predictions.image_uncertainty
    for values in [*predictions.text_uncertainty.values(), *predictions.image_uncertainty.values()]:
        assert values.shape == (256,) and torch.isfinite(values).all()


@pytest.mark.parametrize(
    "name",
    [
        "pfe",
        "pcmepp",
        "prolip",
        "probvlm",
        "vmf",
        "ps-small-data",
        "vmf-both-sides",
        "vmf-image-side",
        "vmf-unmasked",
    ],
)
def test_methods_learn_and_keep_their_best_epoch(name, planted):
    method, figures, loss_before = fitted(name, planted)
    losses = figures["validation_losses"]
    assert min(losses) < loss_before and figures["best_epoch"] == losses.index(min(losses)) + 1
    assert validation_loss(method, planted["validation"], 128, "cpu") == pytest.approx(min(losses))
    found = (method.predict(planted["test"]).scores.argmax(dim=1) == torch.arange(256)).double().mean()
    assert found > 0.02  # five times chance; the cosine of these features finds 0.85


@pytest.mark.parametrize("name", ["pfe", "vmf-backbone-direction", "ps-backbone-direction"])
def test_a_variance_or_concentration_about_the_given_direction_finds_planted_ambiguity(name, planted):
    method, _, _ = fitted(name, planted, num_epochs=25)
    uncertainty = next(iter(method.predict(planted["test"]).text_uncertainty.values()))
    assert rank_correlation(uncertainty, planted["test"].columns["ambiguity"]) > 0.5


def test_monte_carlo_dropout_is_repeatable_and_leaves_the_random_state(planted):
    method = probvlm.ProbVLM(16).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = (method.uncertainty("text", planted["test"].text_features) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert not method.adapters["text"].training


def test_batches_and_steps_follow_the_data(planted):
    splits = {**planted, "train": planted_split(90, 5)}
    torch.manual_seed(0)
    method = METHODS["vmf"].build(16, **{**METHODS["vmf"].settings, "hidden_size": 8})
    figures = train(method, splits, Training(1e-3, num_epochs=5), seed=0)
    assert (figures["batch_size"], figures["steps"]) == (90, 60)
    assert len(figures["validation_losses"]) == 60


def test_a_method_that_only_gets_worse_keeps_the_weights_that_it_started_with(planted):
    torch.manual_seed(0)
    method = METHODS["vmf-small-data"].build(16, **{**METHODS["vmf-small-data"].settings, "hidden_size": 8})
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    figures = train(method, planted, Training(3.0, num_epochs=1, batch_size=128), seed=0)
    assert figures["best_epoch"] == 0 and figures["initial_loss"] < min(figures["validation_losses"])
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())


# Confidences and scores without training


def test_conformity_and_density_are_cosines_with_training_captions(planted):
    method = METHODS["cosine"].build(16, logit_scale=5.0)
    method.fit(planted)
    uncertainty = method.predict(planted["test"]).text_uncertainty
    captions, texts = (
        split.text_features.numpy() / np.linalg.norm(split.text_features.numpy(), axis=1, keepdims=True)
        for split in (planted["train"], planted["test"])
    )
    cosines = texts @ captions.T
    mean = captions.mean(axis=0)
    np.testing.assert_allclose(uncertainty["conformity"], texts @ mean / np.linalg.norm(mean), atol=1e-6)
    nearest = np.sort(cosines, axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(uncertainty["10-NN density"], nearest, atol=1e-6)
    assert ((uncertainty["text confidence"] > 0) & (uncertainty["text confidence"] < 1)).all()


def test_nnn_takes_the_mean_of_the_nearest_references_off_each_side(planted):
    method = METHODS["nnn"].build(16)
    method.fit(planted)
    method.settings = {"text_to_image": (4, 0.5), "image_to_text": (2, 0.75)}
    scores = method.predict(planted["test"]).scores.numpy()
    unit = {
        (name, side): torch.nn.functional.normalize(getattr(planted[name], f"{side}_features"), dim=-1).numpy()
        for name in ("train", "test")
        for side in ("text", "image")
    }
    texts, images = unit["test", "text"], unit["test", "image"]
    image_bias = np.sort(images @ unit["train", "text"].T, axis=1)[:, -4:].mean(axis=1)
    text_bias = np.sort(texts @ unit["train", "image"].T, axis=1)[:, -2:].mean(axis=1)
    np.testing.assert_allclose(scores, texts @ images.T - 0.5 * image_bias - 0.75 * text_bias[:, None], atol=1e-6)


def test_settings_of_nnn_are_those_of_the_highest_recall_on_validation(planted):
    method = METHODS["nnn"].build(16)
    method.fit(planted)
    validation = planted["validation"]

    def recall(number, weight):
        scores = method._scores(validation, {"text_to_image": (number, weight), "image_to_text": (1, 0.0)})
        return (scores.argmax(dim=1) == validation.text_image_index).double().mean().item()

    tried = [recall(number, weight) for weight in nnn.WEIGHTS for number in nnn.NEIGHBOURS]
    assert recall(*method.settings["text_to_image"]) == max(tried) >= recall(1, 0.0)


@pytest.mark.parametrize("name", ["cosine", "pfe", "vmf-image-side"])
def test_evidence_is_the_mean_likelihood_of_training_captions(name, planted):
    entry = METHODS[name]
    settings = {"logit_scale": 5.0} if name == "cosine" else entry.settings
    torch.manual_seed(0)
    method = entry.build(16, **settings).eval()
    of_scores = correction.CorrectionOfScores(method, planted["train"].text_features[:50])
    evidence = of_scores.evidence(planted["test"], 3.0)
    texts = replace(planted["test"], text_features=planted["train"].text_features[:50], captions=[""] * 50, columns={})
    likelihood = np.exp(3.0 * method.predict(texts).scores.double().numpy())
    np.testing.assert_allclose(evidence, np.log(likelihood.mean(axis=0)), rtol=1e-10)


def test_too_few_captions_for_a_batch_are_refused(planted):
    with pytest.raises(ValueError, match="do not fill a batch"):
        fitted("pfe", planted, batch_size=2048)


def test_a_loss_that_is_not_finite_is_an_error(planted):
    with pytest.raises(ValueError, match="after epoch"):
        fitted("vmf", planted, learning_rate=1e30)
