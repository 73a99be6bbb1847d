"""The command: from data to a model, figures and a card; wrong arguments; the user's mistakes."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from modeling_asymvlm import AsymVLMConfig, Calibration
from modeling_asymvlm.commands import train
from modeling_asymvlm.commands.train_checks import alone_in_folder
from modeling_asymvlm.pairs.layouts import SPLITS
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.store.embedding_store import EmbeddingStore
from modeling_asymvlm.training.trainer import AsymVLMTrainer
from tests.support import layouts
from tests.support.pictures import make_picture_folder
from tests.support.training import make_pairs


REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ["--num_train_epochs", "1", "--disable_tqdm", "true"]


@pytest.fixture
def store(tmp_path) -> Path:
    sizes = {"train": (64, 128), "validation": (20, 40), "test": (20, 60)}
    splits = {name: make_pairs(seed, *size, noise=2.0).split for seed, (name, size) in enumerate(sizes.items())}
    return EmbeddingStore.write(tmp_path / "store", splits, {}).path


@pytest.fixture
def backbone(tmp_path, tiny_clip, tiny_processor) -> Path:
    tiny_clip.save_pretrained(tmp_path / "backbone")
    tiny_processor.save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def run(*arguments) -> None:
    train.main([str(argument) for argument in [*QUICK, *arguments]])


def test_cached_features_give_a_head_its_figures_and_a_card(store, tmp_path, capsys):
    folder = tmp_path / "out"
    run("--embeddings", store, "--output_dir", folder, "--distribution", "vmf", "--mean_direction", "backbone")
    results = json.loads((folder / "all_results.json").read_text())
    model = AutoModel.from_pretrained(folder)
    assert model.vlm is None and model.config.distribution == "vmf"
    calibration = Calibration.from_pretrained(folder, model=model)
    expected = evaluate_split(model, EmbeddingStore(store).split("test"), calibration=calibration)
    assert results["test"]["retrieval"] == expected["retrieval"]
    assert results["test"]["uncorrected_retrieval"] == expected["uncorrected_retrieval"]
    assert results["test"]["uncertainty"] == expected["uncertainty"]
    assert set(results["test"]["time"]) == {"features", "training", "calibration", "evaluation"}
    printed = capsys.readouterr().out
    recall = f"{expected['retrieval']['text_to_image_recall@1']:.4f}"
    assert recall in printed and recall in (folder / "README.md").read_text()
    assert "20 images, 60 captions" in printed
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"
    training = results["training"]
    assert (training["num_images"], training["num_captions"], training["steps"]) == (64, 128, 1)
    card = (folder / "README.md").read_text()
    assert "64 images with 128 captions" in card and "Cost: 1 steps (1 epochs)" in card
    assert str(tmp_path) not in card and str(tmp_path) not in json.dumps(results)
    for name in ("reliability.png", "risk_coverage.png", "calibration.png"):
        with Image.open(folder / name) as plot:
            assert plot.size[0] > 400 and f"({name})" in card


def test_a_head_is_saved_before_it_is_evaluated(store, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(train, "evaluate_split", fails)
    with pytest.raises(RuntimeError, match="out of order"):
        run("--embeddings", store, "--output_dir", tmp_path / "out")
    monkeypatch.undo()
    assert AutoModel.from_pretrained(tmp_path / "out").config.projection_dim == EmbeddingStore(store).split("test").dim


def test_an_image_folder_gives_a_whole_model_that_reloads_with_its_processor(backbone, tmp_path, capsys):
    pictures = make_picture_folder(tmp_path / "pictures", 40)
    folder = tmp_path / "out"
    run("--model_name_or_path", backbone, "--dataset_name_or_path", pictures, "--output_dir", folder)
    assert "4 images, 8 captions" in capsys.readouterr().out
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        output = model(**processor(text=["red 3"], images=[Image.new("RGB", (32, 32))], return_tensors="pt"))
    assert output.logits_per_image.shape == (1, 1)
    assert not (folder / "reliability.png").exists()  # four images do not fill ten bins
    assert EmbeddingStore(folder / "embeddings").splits == ["test", "train", "validation"]
    texts = json.loads((folder / "all_results.json").read_text())["example_texts"]
    validation = EmbeddingStore(folder / "embeddings").split("validation")
    assert len(texts) == 4 and set(texts) <= set(validation.captions)
    card = (folder / "README.md").read_text()
    assert all(f"  {text}\n" in card and f'    "{text}",\n' in card for text in texts)

    # figures of other data in the model's own folder: the card keeps the texts of the data that it was trained on
    other = make_picture_folder(tmp_path / "other", 30)
    run("--do_eval", "--model_name_or_path", folder, "--dataset_name_or_path", other, "--output_dir", folder)
    results = json.loads((folder / "all_results.json").read_text())
    assert results["example_texts"] == texts and results["evaluation"]["dataset"] == "other"
    card = (folder / "README.md").read_text()
    assert all(f"  {text}\n" in card for text in texts)


@pytest.mark.parametrize("options", [[], ["--streaming"]])
def test_webdataset_shards_and_streams_of_table_files_train_a_head(options, backbone, tmp_path, capsys):
    if options:
        pictures = make_picture_folder(tmp_path / "pictures", 40)
    else:
        for shard in range(4):
            members = {}
            for number in range(10 * shard, 10 * shard + 10):
                members |= {f"{number}.png": layouts.picture(number), f"{number}.txt": f"red {number}".encode()}
            layouts.write_tar(tmp_path / "pictures" / f"{shard:05}.tar", members)
        pictures = tmp_path / "pictures"
    folder = tmp_path / "out"
    arguments = ["--model_name_or_path", backbone, "--dataset_name_or_path", pictures, "--output_dir", folder]
    run(*arguments, "--held_out_fraction", "0.2", *options)
    sizes = {split: len(EmbeddingStore(folder / "embeddings").split(split).image_ids) for split in SPLITS}
    assert sum(sizes.values()) == 40 and min(sizes.values()) > 1
    assert f"Test split: {sizes['test']} images" in capsys.readouterr().out


def test_arguments_in_one_file_are_those_of_flags(store, tmp_path):
    values = {"embeddings": str(store), "output_dir": str(tmp_path / "out"), "num_hidden_layers": 1, "do_train": True}
    values |= {"lr_scheduler_kwargs": {"num_cycles": 0.5}, "save_strategy": "no", "load_best_model_at_end": False}
    for name, text in (("a.json", json.dumps(values)), ("a.yaml", "\n".join(f"{k}: {v}" for k, v in values.items()))):
        (tmp_path / name).write_text(text)
        model, data, training = train.parse_arguments([str(tmp_path / name)])
        assert (model.num_hidden_layers, data.embeddings, training.do_train) == (1, str(store), True)
        assert not training.evaluate_only
        assert training.output_dir == values["output_dir"]
        assert training.lr_scheduler_kwargs == {"num_cycles": 0.5} and training.save_strategy == "no"


def test_the_head_has_the_defaults_of_its_configuration(store, tmp_path):
    model, _, _ = train.parse_arguments(["--embeddings", str(store), "--output_dir", str(tmp_path / "out")])
    config = AsymVLMConfig(projection_dim=8)
    for name, value in model.head_kwargs().items():
        assert value == getattr(config, name), name


def test_do_eval_alone_gives_the_figures_of_a_trained_head_and_trains_nothing(store, tmp_path, capsys):
    trained, other = tmp_path / "trained", tmp_path / "other"
    run("--embeddings", store, "--output_dir", trained, "--distribution", "vmf")
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    first = json.loads(before["all_results.json"])
    evaluate = ["--do_eval", "--model_name_or_path", trained, "--embeddings", store, "--output_dir"]

    capsys.readouterr()
    run(*evaluate, other)
    assert f"{first['test']['retrieval']['text_to_image_recall@1']:.4f}" in capsys.readouterr().out
    results = json.loads((other / "all_results.json").read_text())
    assert {**results["test"], "time": 0} == {**first["test"], "time": 0}
    assert "training" not in results and str(tmp_path) not in json.dumps(results)
    names = {"all_results.json", "reliability.png", "risk_coverage.png", "calibration.png"}
    assert {path.name for path in other.iterdir()} == names
    assert before == {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}

    run(*evaluate, trained)  # in its own folder the card follows
    card = (trained / "README.md").read_text()
    assert "--do_eval" in card and "64 images with 128 captions" in card
    assert (trained / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_do_eval_computes_the_features_of_pairs(backbone, tmp_path, capsys):
    pictures = make_picture_folder(tmp_path / "pictures", 40)
    data = ["--dataset_name_or_path", pictures]
    run("--model_name_or_path", backbone, *data, "--output_dir", tmp_path / "out")
    trained = capsys.readouterr().out.splitlines()
    run("--do_eval", "--model_name_or_path", tmp_path / "out", *data, "--output_dir", tmp_path / "figures")
    evaluated = capsys.readouterr().out.splitlines()
    recalls = [[line for line in lines if "R@" in line] for lines in (trained, evaluated)]
    assert recalls[0] == recalls[1] and len(recalls[0]) == 6
    assert EmbeddingStore(tmp_path / "figures" / "test_embeddings").splits == ["test"]


def test_do_eval_needs_a_trained_model_and_its_features(store, backbone, tmp_path, capsys):
    out = ["--output_dir", tmp_path / "out"]
    assert "needs a trained model: pass --model_name" in error_of(capsys, "--do_eval", "--embeddings", store, *out)
    run("--embeddings", store, *out)
    common = ["--do_eval", "--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "figures"]
    assert "is a head without a backbone" in mistake(capsys, *common, "--dataset_name_or_path", tmp_path)
    assert "was trained with --distribution power_spherical, not vmf" in mistake(
        capsys, *common, "--distribution", "vmf"
    )
    narrow = EmbeddingStore.write(tmp_path / "narrow", {"test": make_pairs(1, 9, 9, dim=20).split}, {}).path
    assert "are 20 wide, but" in mistake(capsys, *common, "--embeddings", narrow)
    common[2] = backbone
    assert "is a backbone; --do_eval without --do_train needs a trained model" in mistake(
        capsys, *common, "--embeddings", store
    )
    assert not (tmp_path / "figures").exists()


def error_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit_:
        train.main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distribution", "gauss"], "invalid choice: 'gauss' (choose from"),
        (["--distributon", "vmf"], "there is no argument --distributon"),
        (["--num_train_epochs", "many"], "invalid float value: 'many'"),
        (["--hidden_dropout_prob", "1.5"], "hidden_dropout_prob must lie in [0, 1), got 1.5"),
        (["--held_out_fraction", "0.7"], "--held_out_fraction must lie between 0 and 0.5, got 0.7"),
        (["--embedding_batch_size", "0"], "--embedding_batch_size must be at least 1, got 0"),
        (["--embeddings", "./nowhere"], "no folder of cached features at 'nowhere'"),
        (["--embeddings", "a", "--dataset_name_or_path", "b"], "exclude each other"),
        (["--dataset_name_or_path", "a/b"], "needs a backbone: pass --model_name_or_path"),
        (["--dataset_name_or_path", "./x.jsonl", "--model_name_or_path", "a/b"], "no file or folder './x.jsonl'"),
        (["--image_folder", "./nowhere"], "--image_folder: there is no folder './nowhere'"),
        (["--streaming", "true"], "--image_folder and --streaming say how --dataset_name_or_path is read"),
        (["--dataset_name_or_path", "0.tar", "--model_name_or_path", "a/b"], "there is no file or folder '0.tar'"),
        (["--model_name_or_path", "/no/model"], "--model_name_or_path: there is no file or folder '/no/model'"),
        (["--tile_size", "0"], "tile_size must be at least 1, got 0"),
        (["--remove_unused_columns", "true"], "remove_unused_columns must stay off"),
        (["--logit_scale_init", "inf"], "logit_scale_init must be above 0 and finite, got inf"),
        (["--model_name_or_path", ""], "--model_name_or_path: there is no file or folder ''"),
        (["--eval_strategy", "sometimes"], "sometimes is not a valid IntervalStrategy"),
        (["nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_wrong_arguments_end_in_one_sentence_and_exit_code_2(arguments, message, tmp_path, capsys):
    if arguments[0].startswith("--"):
        arguments = [*arguments, "--output_dir", str(tmp_path / "out")]
    assert message in error_of(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_wrong_names_and_values_in_a_file_are_found_too(tmp_path, capsys):
    for text, message in (
        ("distribution: gauss", "invalid choice: 'gauss'"),
        ("distributon: vmf", "there is no argument --distributon"),
        ("- vmf", "must hold a mapping"),
        ("distribution: [vmf", "expected ',' or ']'"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        assert message in error_of(capsys, tmp_path / "a.yaml")


def test_a_folder_with_results_is_overwritten_only_when_asked(store, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    message = error_of(capsys, "--embeddings", store, "--output_dir", folder)
    assert "is not empty" in message and "--overwrite_output_dir" in message
    run("--embeddings", store, "--output_dir", folder, "--overwrite_output_dir")
    (folder / "checkpoint-999").mkdir()
    run("--embeddings", store, "--output_dir", folder, "--overwrite_output_dir", "--seed", 7)
    assert (folder / "mine.txt").read_text() == "keep me"
    assert not (folder / "checkpoint-999").exists()


def test_a_store_without_a_test_split_is_refused_before_anything_is_loaded(store, tmp_path, capsys):
    for part in ("images", "captions"):
        (store / part / "test.parquet").unlink()
    assert "has no split test" in error_of(capsys, "--embeddings", store, "--output_dir", tmp_path / "out")


def test_a_run_goes_on_only_in_its_folder_and_with_its_head(store, tmp_path, capsys):
    folder = tmp_path / "out"
    former = ["--recipe", "learned", "--eval_on_start", "false", "--metric_for_best_model", "eval_loss"]
    run("--embeddings", store, "--output_dir", folder, "--distribution", "vmf", *former)
    (checkpoint,) = folder.glob("checkpoint-*")
    again = [*former, "--embeddings", store, "--resume_from_checkpoint", checkpoint, "--output_dir"]
    assert "trained with --distribution vmf, not power_spherical" in error_of(capsys, *again, folder)
    assert "is not in --output_dir" in error_of(capsys, *again, tmp_path / "other", "--distribution", "vmf")
    elsewhere = [*former, "--embeddings", store, "--resume_from_checkpoint", tmp_path, "--output_dir", folder]
    assert "is not the folder of a checkpoint" in error_of(capsys, *elsewhere)
    run(*again, folder, "--distribution", "vmf", "--num_train_epochs", 2)
    assert "checkpoint-2" in {path.name for path in folder.glob("checkpoint-*")}


def test_an_interrupted_command_goes_on_from_the_last_checkpoint(store, tmp_path, monkeypatch):
    steps = [
        "--embeddings",
        store,
        "--num_train_epochs",
        3,
        "--per_device_train_batch_size",
        32,
        "--resume_from_checkpoint",
        "last",
    ]
    run(*steps, "--output_dir", tmp_path / "straight")
    interrupted = AsymVLMTrainer.training_step

    def interrupt(trainer, *arguments):
        if trainer.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return interrupted(trainer, *arguments)

    monkeypatch.setattr(AsymVLMTrainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*steps, "--output_dir", tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint-5" / "training_state.json").is_file()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    monkeypatch.undo()
    run(*steps, "--output_dir", tmp_path / "cut")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("straight", "cut")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def mistake(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_broken_image_is_named_and_skipped_only_when_asked(backbone, tmp_path, capsys):
    pictures = make_picture_folder(tmp_path / "pictures", 40)
    (pictures / "images" / "7.png").write_text("no picture")
    arguments = [
        "--model_name_or_path",
        backbone,
        "--dataset_name_or_path",
        pictures,
        "--output_dir",
        tmp_path / "out",
    ]
    message = mistake(capsys, *arguments)
    assert "7.png" in message and "--skip_broken_images" in message
    run(*arguments, "--skip_broken_images", "--overwrite_output_dir")
    assert "Skipped 1 broken images" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert len(results["broken_images"]) == 1


def test_mistakes_in_the_data_end_in_one_sentence(backbone, store, tmp_path, capsys):
    pictures = make_picture_folder(tmp_path / "pictures", 40)
    common = ["--model_name_or_path", backbone, "--output_dir", tmp_path / "out"]
    message = mistake(capsys, *common, "--dataset_name_or_path", pictures, "--caption_column", "title")
    assert "no column 'title'; they have image, captions" in message
    (tmp_path / "empty.jsonl").write_text('{"image": "a.png", "caption": "a"}\n{"image": "b.png", "caption": ""}')
    assert "has an empty caption" in mistake(capsys, *common, "--dataset_name_or_path", tmp_path / "empty.jsonl")
    (tmp_path / "one.jsonl").write_text('{"image": "a.png", "caption": "a"}')
    assert "at least two" in mistake(capsys, *common, "--dataset_name_or_path", tmp_path / "one.jsonl")
    narrow = {name: make_pairs(1, 9, 9, dim=20).split for name in ("train", "validation", "test")}
    other = EmbeddingStore.write(tmp_path / "narrow", narrow, {}).path
    assert "are 20 wide, but the backbone" in mistake(capsys, *common, "--embeddings", other)


def test_features_with_nan_and_a_text_model_end_in_one_sentence(store, tmp_path, capsys):
    split = EmbeddingStore(store).split("train")
    image_features = split.image_features[:]
    image_features[3, 1] = float("nan")
    split = replace(split, image_features=image_features)
    splits = {name: split for name in ("train", "validation", "test")}
    broken = EmbeddingStore.write(tmp_path / "broken", splits, {}).path
    message = mistake(capsys, "--embeddings", broken, "--output_dir", tmp_path / "out")
    assert "image_features is NaN or infinite in 1 of 64 rows, the first is row 3" in message
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path / "bert")
    message = mistake(capsys, "--model_name_or_path", tmp_path / "bert", "--output_dir", tmp_path / "out")
    assert "'bert' is not an image–text model" in message


def test_help_names_the_groups_the_defaults_and_examples(capsys):
    with pytest.raises(SystemExit) as exit_:
        train.parse_arguments(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("backbone and head:", "data:", "training:", "examples:", "(default: power_spherical)"):
        assert part in text


def test_the_embedded_example_runs_offline_without_arguments_of_its_own(tmp_path):
    command = [sys.executable, str(REPOSITORY / "train_asymvlm.py"), "--output_dir", str(tmp_path / "out"), *QUICK]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Test split: 2000 images, 2000 captions" in result.stdout
    assert "rank correlation of 1/kappa with the true ambiguity" in result.stdout
    assert "posterior of the first image, text -> image" in result.stdout
    assert (tmp_path / "out" / "reliability.png").exists()
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer is not None


def test_two_runs_in_one_folder_are_told_apart(store, tmp_path, capsys):
    with alone_in_folder(tmp_path / "out"):
        for more in ([], ["--overwrite_output_dir"]):
            with pytest.raises(SystemExit, match="2"):
                run("--embeddings", store, "--output_dir", tmp_path / "out", *more)
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and "out' is in use by another run: wait for its end, or name anoth" in error
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "file").touch()
    assert not list(tmp_path.glob(".*"))


def test_figures_go_before_new_weights_come(store, tmp_path, monkeypatch, capsys):
    arguments = ("--embeddings", store, "--output_dir", tmp_path / "out", "--overwrite_output_dir")
    run(*arguments)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modeling_asymvlm.commands.train.evaluate_split", full)
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, "--seed", 3)
    error = capsys.readouterr().err
    assert "The disk is full: make room and try again" in error and "out'" in error
    assert "Traceback" not in error and error.strip().count("\n") == 0
    assert not {"all_results.json", "README.md"} & set(os.listdir(tmp_path / "out"))


def test_a_run_does_not_go_on_from_another_seed(store, tmp_path, capsys):
    arguments = ("--embeddings", store, "--output_dir", tmp_path / "out")
    run(*arguments)
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, "--resume_from_checkpoint", "last", "--seed", 3)
    assert "is of another run: seed was 42, not 3" in capsys.readouterr().err
