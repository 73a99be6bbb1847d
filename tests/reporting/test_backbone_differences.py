"""A head against its backbone: paired intervals that know which side is better."""

from functools import partial

import numpy as np
import torch

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.evaluation import EmbeddingScores, retrieval_posterior
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.reporting.backbone_differences import backbone_differences, backbone_scale
from modeling_asymvlm.training.checks import comparison_warnings
from tests.support.training import make_pairs


def test_an_untrained_head_has_the_recall_of_its_backbone_and_a_random_one_is_worse():
    validation, test = make_pairs(0, 80, 160, noise=1.0).split, make_pairs(1, 80, 160, noise=1.0).split
    untrained = AsymVLMModel(AsymVLMConfig(projection_dim=24)).eval()
    found = backbone_differences(untrained, validation, test, num_resamples=50)
    assert found["text_to_image_recall@1"] == [0, 0] and found["image_to_text_recall@1"] == [0, 0]
    torch.manual_seed(0)
    random = AsymVLMModel(AsymVLMConfig(projection_dim=24, mean_direction="learned")).eval()
    found = backbone_differences(random, validation, test, num_resamples=50)
    assert found["text_to_image_recall@1"][1] < -0.3 and found["text_to_image_negative_log_likelihood"][0] > 0.3
    assert len(comparison_warnings(found)) == 4


def test_the_scale_of_the_cosine_is_fitted_on_validation():
    validation = make_pairs(0, 80, 80, noise=1.5).split

    def loss(scale: float) -> float:
        cosine = partial(pair_scores, distribution="deterministic")
        scores = EmbeddingScores(validation.text_features, validation.image_features, cosine)
        posterior = retrieval_posterior(scores, validation.text_image_index, logit_scale=scale)
        ways = (posterior.text_to_image, posterior.image_to_text)
        return float(np.mean([-way.own_log_probability.mean() for way in ways]))

    scale = backbone_scale(validation)
    assert loss(scale) <= min(loss(0.97 * scale), loss(1.03 * scale))
    perfect = backbone_scale(make_pairs(0, 80, 80, noise=0.0).split)
    assert 0 < perfect < 100
