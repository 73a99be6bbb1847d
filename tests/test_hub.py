"""Model cards: valid metadata, the measured figures and nothing else."""

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.data import EmbeddingSplit
from modeling_asymvlm.hub import model_card, write_model_card
from modeling_asymvlm.report import evaluate_split, format_table


@pytest.fixture
def results():
    torch.manual_seed(0)
    index = torch.arange(30) % 15
    names = [str(row) for row in range(15)]
    split = EmbeddingSplit(names, torch.randn(15, 8), ["x"] * 30, torch.randn(30, 8), index)
    return evaluate_split(AsymVLMModel(AsymVLMConfig(projection_dim=8)).eval(), split)


def make_card(results, **arguments) -> str:
    defaults = {
        "model_name": "asymvlm-test",
        "config": AsymVLMConfig(projection_dim=8).to_dict(),
        "base_model": "tests/clip",
        "dataset": "Some data",
        "command": "accelerate launch train_asymvlm.py --seed 1",
        "plot": "reliability.png",
        "license": "mit",
    }
    return model_card(results, **{**defaults, **arguments})


def test_the_metadata_hold_the_measured_recalls(results, tmp_path):
    write_model_card(tmp_path / "README.md", make_card(results))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "tests/clip" and data.base_model_relation == "adapter"
    assert data.library_name == "transformers" and data.license == "mit"
    assert {figure.metric_name: figure.metric_value for figure in data.eval_results} == {
        name: round(value, 5) for name, value in results["retrieval"].items()
    }


def test_the_text_holds_the_table_the_command_and_the_limits(results):
    card = make_card(results)
    assert format_table(results) in card
    assert "accelerate launch train_asymvlm.py --seed 1" in card
    assert "it does not say whether a gallery holds a match" in card
    assert "![R@1 against uncertainty level](reliability.png)" in card


def test_what_is_not_known_is_not_claimed(results):
    del results["uncertainty"]
    card = make_card(results, base_model=None, plot=None, license=None)
    assert (
        "license" not in card and "base_model" not in card and "reliability.png" not in card and "Spearman" not in card
    )
    assert "model(text_features=text_features)" in card and "processor(text" not in card
