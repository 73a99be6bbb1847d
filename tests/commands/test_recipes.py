"""--recipe and --search on the command line: a recipe sets defaults, and what is given besides wins."""

import json

import pytest

from modeling_asymvlm.commands import train
from modeling_asymvlm.store.embedding_store import EmbeddingStore
from modeling_asymvlm.training import search
from modeling_asymvlm.training.recipes import RECIPES
from tests.support.training import make_pairs


@pytest.fixture
def store(tmp_path):
    sizes = {"train": 120, "validation": 60, "test": 60}
    splits = {name: make_pairs(seed, size, size, noise=1.5).split for seed, (name, size) in enumerate(sizes.items())}
    return str(EmbeddingStore.write(tmp_path / "store", splits, {}).path)


def parsed(store, tmp_path, *flags):
    model, _, training = train.parse_arguments(
        ["--embeddings", store, "--output_dir", str(tmp_path / "out"), *map(str, flags)]
    )
    return {**vars(model), **vars(training)}


@pytest.mark.parametrize("form", [["--recipe", "{}"], ["--recipe={}"]])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_sets_what_its_table_says(store, tmp_path, name, form):
    values = parsed(store, tmp_path, *(part.format(name) for part in form))
    for argument, value in {**RECIPES[name].head, **RECIPES[name].training}.items():
        assert values[argument] == value, argument
    if name == "default":
        named = ("mean_direction", "learning_rate", "num_train_epochs")
        assert tuple(values[argument] for argument in named) == ("refined", 2e-3, None)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--recipe", "paper", "--learning_rate", "0.5"], {"learning_rate": 0.5, "optim": "sgd"}),
        (["--learning_rate", "0.5", "--recipe", "paper"], {"learning_rate": 0.5, "num_hidden_layers": 3}),
        (["--recipe", "paper", "--num_hidden_layers", "1"], {"num_hidden_layers": 1, "hidden_size": 1024}),
        (["--recipe", "paper", "--num-train-epochs", "7"], {"num_train_epochs": 7.0, "weight_decay": 5e-4}),
        (["--recipe", "paper", "--mean_direction", "refined"], {"mean_direction": "refined"}),
        (["--recipe", "paper", "--same_image_negatives", "false"], {"same_image_negatives": False}),
        (["--recipe", "learned", "--hidden_dropout_prob", "0.5"], {"hidden_dropout_prob": 0.5, "hidden_size": 1024}),
    ],
)
def test_what_is_given_besides_a_recipe_wins(store, tmp_path, flags, expected):
    values = parsed(store, tmp_path, *flags)
    assert {name: values[name] for name in expected} == expected


def test_a_recipe_may_stand_in_a_file_and_a_wrong_one_is_named(store, tmp_path, capsys):
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({"embeddings": store, "output_dir": str(tmp_path / "out"), "recipe": "paper"}))
    model, _, training = train.parse_arguments([str(file)])
    assert model.num_hidden_layers == 3 and training.global_train_batch_size == 2048
    with pytest.raises(SystemExit):
        train.parse_arguments(["--recipe", "best"])
    assert "invalid choice: 'best'" in capsys.readouterr().err


def run(store, folder, *flags) -> dict:
    train.main(["--embeddings", store, "--output_dir", str(folder), "--disable_tqdm", "true", *flags])
    return json.loads((folder / "all_results.json").read_text())


def test_no_flags_give_what_the_rule_says_and_the_warnings_are_kept(store, tmp_path, capsys):
    results = run(store, tmp_path / "out")
    training = results["training"]
    assert 0 < training["steps"] <= 60 and training["epochs"] == training["steps"]
    assert set(results["test"]["differences_to_backbone"]) == {
        "text_to_image_recall@1",
        "image_to_text_recall@1",
        "negative_log_likelihood",
    }
    assert not any("steps" in sentence or "repeat" in sentence for sentence in results["warnings"])
    few = run(store, tmp_path / "few", "--num_train_epochs", "2")
    assert any("Training takes 2 optimiser steps" in sentence for sentence in few["warnings"])


def test_a_search_is_recorded_and_used(store, tmp_path, monkeypatch):
    chosen = {"hidden_dropout_prob": 0.2, "input_dropout_prob": 0.3, "weight_decay": 0.1}
    monkeypatch.setattr(search, "CANDIDATES", (chosen,))
    monkeypatch.setattr(search, "_validation_loss", lambda config, setting, *_: setting["weight_decay"])
    results = run(store, tmp_path / "out", "--search", "--max_steps", "3")
    record = results["training"]["search"]
    assert record["chosen"] == chosen and record["folds"] == 5 and len(record["tried"]) == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_dropout_prob"], config["input_dropout_prob"]) == (0.2, 0.3)


def test_a_run_that_diverges_ends_in_one_sentence_and_leaves_no_model(store, tmp_path, capsys):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        run(store, folder, "--learning_rate", "1e8", "--mean_direction", "learned")
    assert exit_.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "Training diverged" in message and "at step" in message and "Lower learning_rate" in message
    assert not (folder / "model.safetensors").exists()
