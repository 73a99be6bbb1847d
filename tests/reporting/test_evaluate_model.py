"""The evaluation of a split and its table, against the metrics computed by hand."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, roc_auc_score

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.reporting.tables import format_table
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


def make_split(images: int, texts: int, **columns) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(images)
    image_features = torch.randn(images, 12, generator=generator)
    index = torch.arange(texts) % images
    text_features = image_features[index] + torch.randn(texts, 12, generator=generator)
    return EmbeddingSplit(
        [str(row) for row in range(images)], image_features, ["x"] * texts, text_features, index, columns
    )


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical"])
def test_figures_are_those_of_the_score_matrix(distribution):
    torch.manual_seed(0)
    model = AsymVLMModel(AsymVLMConfig(projection_dim=12, hidden_size=16, distribution=distribution)).eval()
    torch.nn.init.normal_(model.text_head.output_layer.weight)
    ambiguity = np.random.default_rng(1).random(60)
    split = make_split(20, 60, ambiguity=ambiguity)
    results = evaluate_split(model, split, batch_size=7, num_resamples=40)

    eta = model.text_head(split.text_features).detach()
    scores = pair_scores(eta, split.image_features, distribution=distribution)
    cosines = torch.cosine_similarity(split.text_features[:, None], split.image_features[None], dim=-1)
    for key, matrix in (("retrieval", scores), ("backbone_retrieval", cosines)):
        best_image = matrix.argsort(dim=1, descending=True)
        hits = (best_image[:, :5] == split.text_image_index[:, None]).any(dim=1)
        assert results[key]["text_to_image_recall@5"] == pytest.approx(hits.float().mean().item())
        own = split.text_image_index[matrix.argmax(dim=0)] == torch.arange(20)
        assert results[key]["image_to_text_recall@1"] == pytest.approx(own.float().mean().item())
    uncertainty = 1 / eta.norm(dim=-1)
    assert results["rank_correlation_with_ambiguity"] == pytest.approx(spearmanr(uncertainty, ambiguity)[0])
    order = uncertainty.argsort(stable=True)
    correct = (scores.argmax(dim=1) == split.text_image_index)[order].float()
    bins = results["uncertainty"]["text_to_image"]["bin_recall"]
    assert bins == pytest.approx([part.mean().item() for part in correct.tensor_split(10)])
    assert results["concentration"]["50%"] == pytest.approx(np.quantile(eta.norm(dim=-1), 0.5), rel=1e-6)
    check_posterior(results, scores, split, model.logit_scale.item())
    json.dumps(results)


def check_posterior(results, scores, split, scale):
    probability = torch.softmax(scale * scores, dim=1)
    right = scores.argmax(dim=1) == split.text_image_index
    metrics = results["posterior"]["text_to_image"]
    stated = probability.amax(dim=1)
    assert results["posterior"]["logit_scale"] == scale
    assert metrics["auroc"] == pytest.approx(roc_auc_score(~right, -stated), abs=1e-3)
    own = probability[torch.arange(60), split.text_image_index]
    assert metrics["negative_log_likelihood"] == pytest.approx(-own.log().mean().item(), rel=1e-5)
    assert metrics["calibration"]["brier_score"] == pytest.approx(brier_score_loss(right, stated), rel=1e-5)
    assert results["risk_coverage"]["posterior"]["text_to_image"]["aurc"] == metrics["aurc"]
    assert len(results["risk_coverage"]["uncertainty"]) == len(results["risk_coverage"]["posterior"]) == 2
    # Whole images are drawn, with their three captions.
    hits = right.reshape(3, 20).numpy()
    draws = [hits[:, drawn].mean() for drawn in np.random.default_rng(0).integers(20, size=(4000, 20))]
    low, high = results["intervals"]["retrieval"]["text_to_image_recall@1"]
    assert low == pytest.approx(np.quantile(draws, 0.025), abs=0.06)
    assert high == pytest.approx(np.quantile(draws, 0.975), abs=0.06)
    low, high = results["intervals"]["posterior"]["text_to_image"]["auroc"]
    assert 0 <= low < metrics["auroc"] < high <= 1


def test_another_temperature_changes_the_posterior_and_not_the_ranks():
    torch.manual_seed(0)
    model = AsymVLMModel(AsymVLMConfig(projection_dim=12, num_hidden_layers=3)).eval()
    own, other = (evaluate_split(model, make_split(20, 60), num_resamples=2, logit_scale=tau) for tau in (None, 9.0))
    assert other["posterior"]["logit_scale"] == 9.0
    assert own["posterior"]["text_to_image"]["calibration"] != other["posterior"]["text_to_image"]["calibration"]
    assert own["retrieval"] == other["retrieval"] and own["uncertainty"] == other["uncertainty"]


def test_uncertainty_is_left_out_where_it_has_no_answer():
    few = evaluate_split(AsymVLMModel(AsymVLMConfig(projection_dim=12)).eval(), make_split(9, 30), num_resamples=5)
    assert "uncertainty" not in few and "concentration" in few
    deterministic = AsymVLMModel(AsymVLMConfig(projection_dim=12, distribution="deterministic")).eval()
    assert set(evaluate_split(deterministic, make_split(20, 30), num_resamples=5)) == {
        "num_images",
        "num_captions",
        "retrieval",
        "backbone_retrieval",
        "median_rank",
        "backbone_median_rank",
        "posterior",
        "intervals",
        "risk_coverage",
    }


def test_specificity_is_reported_where_captions_have_levels():
    split = make_split(10, 40, level=np.arange(40) // 10)
    results = evaluate_split(AsymVLMModel(AsymVLMConfig(projection_dim=12)).eval(), split, num_resamples=5)
    assert -1 <= results["specificity"]["mean_group_spearman"] <= 1
    assert "with the caption's level, 10 images" in format_table(results)


def test_images_whose_captions_are_all_of_one_level_do_not_count_towards_specificity():
    model = AsymVLMModel(AsymVLMConfig(projection_dim=12)).eval()
    level = np.arange(40) // 10
    whole = evaluate_split(model, make_split(10, 40, level=level), num_resamples=5)["specificity"]
    level[np.arange(40) % 10 == 3] = 2
    some = evaluate_split(model, make_split(10, 40, level=level), num_resamples=5)["specificity"]
    assert (whole["num_groups"], some["num_groups"]) == (10, 9)
    assert "specificity" not in evaluate_split(model, make_split(40, 40, level=np.arange(40) % 4), num_resamples=5)


def test_the_table_shows_every_figure_and_says_what_is_undefined():
    torch.manual_seed(0)
    results = evaluate_split(
        AsymVLMModel(AsymVLMConfig(projection_dim=12)).eval(), make_split(20, 60), num_resamples=5
    )
    results["time"] = {"training": 12.34}
    results["uncertainty"]["text_to_image"]["spearman"] = float("nan")
    table = format_table(results)
    for key in ("text_to_image_recall@1", "image_to_text_recall@10"):
        assert f"{results['retrieval'][key]:.4f}" in table
        assert f"{results['backbone_retrieval'][key]:.4f}" in table
    posterior, intervals = results["posterior"], results["intervals"]["posterior"]
    low, high = intervals["text_to_image"]["auroc"]
    assert f"{posterior['text_to_image']['auroc']:.3f} [{low:.3f}, {high:.3f}]" in table
    assert f"{posterior['image_to_text']['calibration']['brier_score']:.3f}" in table
    assert f"({results['uncertainty']['text_to_image']['optimal_aurc']:.3f})" in table
    assert f"{results['median_rank']['image_to_text_median_rank']:g}" in table
    assert "undefined" in table and "12.3 s" in table and "10 bins" in table
    widths = [{len(line) for line in part.splitlines()} for part in table.split("\n\n")]
    assert all(len(of_table) == 1 for of_table in widths)
