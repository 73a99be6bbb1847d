"""The search over regularisation: what it tries, on which pairs, and what it leaves."""

import pytest
import torch

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.training import search
from modeling_asymvlm.training.arguments import AsymVLMTrainingArguments
from modeling_asymvlm.training.search import search_regularisation, use_regularisation
from tests.support.training import make_pairs


@pytest.mark.parametrize(("images", "folds"), [(60, 5), (200, 1)])
def test_the_setting_of_least_loss_is_chosen_on_images_that_were_not_trained_on(tmp_path, monkeypatch, images, folds):
    seen = []

    def loss(config, setting, train, validation, training):
        shared = {row.tobytes() for row in train.image_features[:].numpy()}
        assert not any(row.tobytes() in shared for row in validation.image_features[:].numpy())
        cosine = torch.cosine_similarity(train.text_features, train.image_features[train.text_image_index])
        assert cosine.mean() > 0.8  # texts are still with their images
        seen.append((len(train.text_image_index), len(validation.text_image_index)))
        return setting["weight_decay"]

    monkeypatch.setattr(search, "_validation_loss", loss)
    model = AsymVLMModel(AsymVLMConfig(projection_dim=24, hidden_size=32))
    training = AsymVLMTrainingArguments(output_dir=str(tmp_path))
    found = search_regularisation(model, make_pairs(0, 90, 180).split, make_pairs(1, images, images).split, training)
    assert found["folds"] == folds and len(found["tried"]) == 5 and len(seen) == 5 * folds
    assert found["chosen"] == {"hidden_dropout_prob": 0.5, "input_dropout_prob": 0.3, "weight_decay": 0.1}
    if folds == 5:
        assert sum(validation for _, validation in seen[:5]) == 180 + images
    use_regularisation(model, training, {**found["chosen"], "hidden_dropout_prob": 0.7})
    assert (model.text_head.dropout.p, model.text_head.input_dropout.p, training.weight_decay) == (0.7, 0.3, 0.1)
    assert model.config.hidden_dropout_prob == 0.7


def test_a_search_trains_and_leaves_the_model_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "CANDIDATES", search.CANDIDATES[:1])
    model = AsymVLMModel(AsymVLMConfig(projection_dim=24, hidden_size=32))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = AsymVLMTrainingArguments(output_dir=str(tmp_path / "out"), max_steps=5, disable_tqdm=True)
    found = search_regularisation(model, make_pairs(0, 60, 60).split, make_pairs(1, 200, 200).split, training)
    assert [entry["hidden_dropout_prob"] for entry in found["tried"]] == [0.5, 0.2]
    assert all(0 < entry["loss"] < 10 for entry in found["tried"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not list((tmp_path / "out").glob("*")) and training.load_best_model_at_end
