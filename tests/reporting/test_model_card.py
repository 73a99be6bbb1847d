"""Model cards: valid metadata, the measured figures, an executed example and nothing else."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.reporting.model_card import PLOTS, model_card, model_facts, write_model_card
from modeling_asymvlm.reporting.results import read_results
from modeling_asymvlm.reporting.tables import format_table
from modeling_asymvlm.reporting.usage_example import choose_texts, run_example, run_example_isolated, usage_example
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


SCENES = Path(__file__).parents[2] / "model_cards" / "asymvlm-scenes"


@pytest.fixture
def results():
    torch.manual_seed(0)
    index = torch.arange(30) % 15
    names = [str(row) for row in range(15)]
    split = EmbeddingSplit(names, torch.randn(15, 8), ["x"] * 30, torch.randn(30, 8), index)
    model = AsymVLMModel(AsymVLMConfig(projection_dim=8)).eval()
    facts = {"base_model": "tests/clip", "base_model_revision": "0123abc", "takes_features": False}
    return {
        "model": {**model_facts(model.config), **facts},
        "test": {
            **evaluate_split(model, split, num_resamples=50),
            "time": {"features": 40.2, "training": 12.6, "evaluation": 1.0},
        },
        "training": {
            "dataset": "Some data",
            "dataset_id": "tests/some_data",
            "num_images": 100,
            "num_captions": 500,
            "steps": 70,
            "epochs": 10.0,
            "machine": "a CPU with 3 cores",
            "time": {"features": 40.2, "training": 12.6},
            "command": "accelerate launch train_asymvlm.py --seed 1",
            "license": "mit",
        },
    }


def make_card(results, **arguments) -> str:
    return model_card(
        results, **{"model_name": "asymvlm-test", "location": "tests/head", "plots": ["reliability.png"], **arguments}
    )


def test_the_metadata_hold_the_measured_recalls(results, tmp_path):
    write_model_card(tmp_path / "README.md", make_card(results))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "tests/clip" and data.base_model_relation == "adapter"
    assert data.library_name == "transformers" and data.license == "mit"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.datasets == ["tests/some_data"] and data.metrics == ["recall"]
    assert {figure.metric_name: figure.metric_value for figure in data.eval_results} == {
        name: round(value, 5) for name, value in results["test"]["retrieval"].items()
    }
    assert {figure.dataset_type for figure in data.eval_results} == {"tests/some_data"}


def test_the_text_holds_the_table_the_command_the_cost_and_the_limits(results):
    card = make_card(results)
    assert format_table(results["test"]) in card
    assert "accelerate launch train_asymvlm.py --seed 1" in card
    assert "it does not say whether a gallery holds a match" in card
    assert "![R@1 against uncertainty level](reliability.png)" in card and "calibration.png" not in card
    assert "95 % bootstrap intervals, 50 resamples" in card
    assert "100 images with 500 captions" in card
    assert "70 steps (10 epochs), 13 s, after 40 s for the backbone's features, on a CPU with 3 cores" in card
    assert "`tests/clip` at commit `0123abc`" in card


def test_what_is_not_known_is_not_claimed(results):
    del results["test"]["uncertainty"], results["test"]["posterior"], results["training"]
    results["model"] |= {"base_model": None, "takes_features": True}
    card = make_card(results, plots=[])
    for word in (
        "license",
        "base_model",
        "reliability.png",
        "Spearman",
        "AUROC",
        "datasets:",
        "Cost",
        "Training",
        "prints",
    ):
        assert word not in card, word
    assert "model(text_features=text_features)" in card and "processor(text" not in card


def test_undefined_figures_in_a_file_are_undefined_in_the_card(results, tmp_path):
    results["test"]["uncertainty"]["text_to_image"]["spearman"] = None
    results["test"]["intervals"]["posterior"]["text_to_image"]["auroc"] = [None, None]
    (tmp_path / "all_results.json").write_text(json.dumps(results))
    assert "undefined" in make_card(read_results(tmp_path / "all_results.json"))


def test_figures_of_a_later_evaluation_name_its_data_and_command(results):
    results["evaluation"] = {"dataset": "Other data", "dataset_id": None, "command": "train_asymvlm.py --do_eval"}
    card = make_card(results)
    assert (
        "Other data: 15 images, 30 captions. Every figure was measured by\n\n```bash\ntrain_asymvlm.py --do_eval"
        in card
    )
    assert "the training split of Some data" in card and "dataset_type" not in card
    data = ModelCard(card).data
    assert {figure.dataset_name for figure in data.eval_results} == {"Other data"}
    assert data.datasets == ["tests/some_data"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"test": []}', '{"test": {"retrieval": {}}}'])
def test_a_file_without_test_results_is_refused(tmp_path, text):
    (tmp_path / "all_results.json").write_text(text)
    with pytest.raises(ValueError, match="holds no test results: make it anew by training or evaluating"):
        read_results(tmp_path / "all_results.json")


@pytest.mark.parametrize("distribution", ["vmf", "deterministic", None])
@pytest.mark.parametrize("texts", [["a picture", 'a "small" red\\nose 😀'], []])
def test_the_example_in_the_card_runs_and_prints_what_the_card_says(
    results, tiny_clip, tiny_processor, tmp_path, distribution, texts
):
    if texts:
        results["example_texts"] = texts
    if distribution is None:
        model = AsymVLMModel(AsymVLMConfig(projection_dim=8))
    else:
        model = AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution=distribution)
        tiny_processor.save_pretrained(tmp_path)
    model.eval().save_pretrained(tmp_path)
    results["model"] = model_facts(model.config)
    example = usage_example(results["model"], str(tmp_path), texts=texts, published=False)
    results["example_output"] = run_example(example)
    card = make_card(results, location=str(tmp_path))
    (example,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    printed = run_example(example)
    assert f"prints\n\n```\n{printed}```" in card
    if distribution == "vmf" and texts:
        assert [line.split(maxsplit=1)[1] for line in printed.splitlines()] == texts
        with torch.no_grad():
            inputs = tiny_processor(text=["a picture"], padding=True, return_tensors="pt")
            concentration = model(**inputs).concentration.item()
        assert float(printed.split()[0]) == pytest.approx(1 / concentration, abs=6e-5)
    else:
        assert printed.startswith("torch.Size(")


def test_texts_of_the_data_are_no_code(results):
    texts = ['"]; raise SystemExit; ["', "\\", "{uncertainty}", "été 😀"]
    example = usage_example({**results["model"], "takes_features": False}, "x", texts=texts, published=True)
    lines = [line for line in example.splitlines() if line.startswith("    ") and line.endswith(",")]
    assert [json.loads(line.strip().rstrip(",")) for line in lines] == texts
    begin, end = example.index("texts = ["), example.index("inputs = ")
    assert run_example_isolated(example[begin:end] + "print(texts)") == f"{texts}\n"


def test_what_a_library_writes_to_the_output_itself_is_not_what_the_example_prints():
    assert run_example_isolated("import os\nos.write(1, b'holes')\nprint('é')") == "é\n"
    with pytest.raises(ValueError, match="fails where this package is not installed: ModuleNotFoundError"):
        run_example_isolated("import modeling_asymvlm")


def test_a_card_knows_no_texts_but_those_of_its_results(results):
    card = make_card(results)
    assert "red circle" not in card and 'texts = ["one text", "another text"]' in card
    assert "print(output.text_embeds.shape)" in card and "uncertainty:.4f" not in card
    results["example_texts"] = ["a dog", "a wet dog on a lawn"]
    card = make_card(results)
    assert '    "a dog",\n    "a wet dog on a lawn",\n]' in card and "one text" not in card
    assert "uncertainty:.4f" in card


def test_the_texts_of_an_example_go_from_vague_to_specific_and_are_short():
    uncertainty = torch.linspace(1, 2, 1001).tolist()
    captions = [f"caption {'x' * (row % 7)} {row}" for row in range(1001)]
    chosen = choose_texts(captions, uncertainty)
    rows = [captions.index(text) for text in chosen]
    assert len(rows) == 4 and [round(row / 1000, 1) for row in rows] in ([0.9, 0.6, 0.3, 0.0], [1.0, 0.6, 0.4, 0.1])
    assert rows == sorted(rows, reverse=True)
    assert all(row % 7 == 0 for row in rows)
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(0)).tolist()
    assert choose_texts([captions[row] for row in order], [uncertainty[row] for row in order]) == chosen


def test_few_captions_and_those_that_no_line_of_a_card_holds():
    assert choose_texts([], []) == []
    assert choose_texts(["a", "a"], [1.0, 1.0]) == ["a"]
    assert choose_texts(["a", "b", "c"], [1.0, 3.0, 2.0]) == ["b", "c", "a"]
    assert choose_texts(["a\nb", "```", "x" * 201, "\x1b[2J", "fine"], [1.0, 2.0, 3.0, 4.0, 5.0]) == ["fine"]


def test_the_card_of_the_scenes_checkpoint_is_made_from_its_recorded_results(tmp_path):
    card = model_card(
        read_results(SCENES / "all_results.json"),
        model_name="asymvlm",
        location="outputs/asymvlm",
        plots=[name for name in PLOTS if (SCENES / name).is_file()],
    )
    write_model_card(tmp_path / "README.md", card)
    assert (tmp_path / "README.md").read_bytes() == (SCENES / "README.md").read_bytes()
