"""Publishing: what travels and what does not, uploads that break off, refusals, and wrong arguments."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.calibration.calibration_files import CALIBRATION_FILE, TENSORS_FILE
from modeling_asymvlm.commands.publish import main
from modeling_asymvlm.model.checkpoint_code import AUTO_MAP, code_files
from modeling_asymvlm.model.checkpoint_fingerprints import head_fingerprint
from modeling_asymvlm.publishing.upload import upload
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.reporting.usage_example import run_example_isolated
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments
from tests.support.calibrations import make_calibration
from tests.support.hub_stand_in import hub_stand_in
from tests.support.tiny_models import make_tiny_clip, make_tiny_processor
from tests.support.training import make_pairs


# Of huggingface_hub 2.4.0 itself, where it uploads a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "org/tiny-asymvlm"
TEXTS = ["a picture", "a small red circle"]
CODE = {file.name for file in code_files()}
TRAVELS = CODE | {
    "README.md",
    "all_results.json",
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "calibration.json",
    "calibration.safetensors",
    "reliability.png",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """What training leaves: a checkpoint with results, and much that is nobody else's business."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    model = AsymVLMModel.from_vlm_pretrained(make_tiny_clip(), distribution="vmf").eval()
    model.save_pretrained(folder)
    make_tiny_processor().save_pretrained(folder)
    make_calibration(model).save_pretrained(folder)
    test = {
        **evaluate_split(model, make_pairs(0, 20, 60).split),
        "time": {"features": 1.0, "training": 2.0, "evaluation": 3.0},
    }
    results = {"broken_images": [str(folder / "broken.png")], "test": test, "example_texts": TEXTS}
    results["head_fingerprint"] = head_fingerprint(model)
    (folder / "all_results.json").write_text(json.dumps(results))
    (folder / "reliability.png").write_bytes(b"a plot")
    for private in ("optimizer.pt", "training_args.bin", "training_args.json", "embeddings/captions/train.parquet"):
        (folder / private).parent.mkdir(parents=True, exist_ok=True)
        (folder / private).write_text(str(folder))
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "name_or_path": str(folder), "_name_or_path": "/a/b"}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def dry_run(checkpoint, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a dry run of the command itself, and what it printed."""
    before = contents(checkpoint)
    output = tmp_path_factory.mktemp("dry") / "upload"
    command = [sys.executable, "-m", "modeling_asymvlm", "publish", str(checkpoint), "--repo_id", NAME]
    result = subprocess.run([*command, "--dry-run", "--output", str(output)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert contents(checkpoint) == before
    return output, result.stdout


@pytest.fixture(autouse=True)
def own_verbosity():
    verbosity = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(verbosity)


@pytest.fixture
def hub(monkeypatch):
    with hub_stand_in(monkeypatch) as running:
        yield running


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, output and error of the command."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dry_run_writes_and_lists_what_travels_and_nothing_else(dry_run, checkpoint):
    folder, printed = dry_run
    assert set(contents(folder)) == TRAVELS
    for name in TRAVELS:
        assert f"{(folder / name).stat().st_size:,}  {name}" in printed
    assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    for name, content in contents(folder).items():
        for path in (checkpoint, Path.home(), Path(sys.prefix)):
            assert str(path).encode() not in content, name
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and "name_or_path" not in config and "_name_or_path" not in config
    assert "broken_images" not in json.loads((folder / "all_results.json").read_text())
    assert AutoProcessor.from_pretrained(folder).tokenizer is not None


def test_the_card_shows_what_its_example_printed_without_the_package(dry_run):
    folder, _ = dry_run
    card = ModelCard.load(folder / "README.md")
    example = card.content.partition("```python\n")[2].partition("```")[0]
    assert f'AutoModel.from_pretrained("{NAME}", trust_remote_code=True)' in example
    printed = run_example_isolated(example.replace(NAME, str(folder)))
    assert [line.split(maxsplit=1)[1] for line in printed.splitlines()] == TEXTS
    assert "a small red circle" in printed and f"prints\n\n```\n{printed}```" in card.content
    measured = json.loads((folder / "all_results.json").read_text())["test"]["retrieval"]
    assert {figure.metric_name: figure.metric_value for figure in card.data.eval_results} == {
        name: round(value, 5) for name, value in measured.items()
    }


def test_a_card_of_results_without_texts_shows_what_the_model_gives(copied, tmp_path, capsys):
    results = json.loads((copied / "all_results.json").read_text())
    del results["example_texts"]
    (copied / "all_results.json").write_text(json.dumps(results))
    code, _, error = run(capsys, copied, "--repo_id", NAME, "--dry-run", "--output", tmp_path / "upload")
    assert code == 0, error
    assert "prints\n\n```\ntorch.Size([2, " in (tmp_path / "upload" / "README.md").read_text()


@pytest.mark.parametrize("cut", ["lfs", "commit"])
def test_an_upload_that_breaks_off_leaves_nothing_and_a_retry_completes_it(
    hub, dry_run, checkpoint, capsys, monkeypatch, cut
):
    folder, _ = dry_run
    # The example was executed for the dry run; executing it again takes ten seconds and gives the same.
    printed = (folder / "README.md").read_text().partition("prints\n\n```\n")[2].partition("```")[0]
    monkeypatch.setattr("modeling_asymvlm.publishing.upload.run_example_isolated", lambda example: printed)
    before = contents(checkpoint)
    hub.cut = cut
    code, out, error = run(capsys, checkpoint, "--repo_id", NAME, "--private")
    assert code == 1 and "Published" not in out
    assert error.splitlines()[-1].startswith(f"publish: error: the upload to '{NAME}' did not finish (")
    assert "run the command again" in error and "Traceback" not in error
    assert hub.repositories[NAME]["commits"] == 0 and hub.files(NAME) == {}
    assert contents(checkpoint) == before
    hub.cut = None
    code, out, error = run(capsys, checkpoint, "--repo_id", NAME, "--private")
    assert (code, error) == (0, "") and f"Published: {hub.endpoint}/{NAME}/commit/" in out
    assert hub.files(NAME) == contents(folder)
    assert hub.repositories[NAME]["private"] and hub.repositories[NAME]["commits"] == 1
    assert contents(checkpoint) == before


def test_a_branch_is_created_and_the_main_one_left_alone(hub, dry_run):
    upload(dry_run[0], NAME, revision="v2")
    assert hub.files(NAME, "v2") == contents(dry_run[0]) and hub.files(NAME) == {}
    assert not hub.repositories[NAME]["private"]


def failed_upload(capsys, monkeypatch, checkpoint, dry_run, *arguments) -> str:
    monkeypatch.setattr(
        "modeling_asymvlm.commands.publish.prepare_upload",
        lambda folder, output, *rest: shutil.copytree(dry_run[0], output, dirs_exist_ok=True),
    )
    code, _, error = run(capsys, checkpoint, "--repo_id", NAME, *arguments)
    assert code == 1 and "Traceback" not in error
    return error.splitlines()[-1]


def test_a_refused_token_ends_in_one_sentence(hub, capsys, monkeypatch, checkpoint, dry_run):
    for status, message in ((401, "does not accept the token (401): log in"), (403, f"not write to '{NAME}' (403)")):
        hub.refuse = status
        assert message in failed_upload(capsys, monkeypatch, checkpoint, dry_run)
    assert not hub.repositories


def test_a_hub_out_of_reach_ends_in_one_sentence(hub, capsys, monkeypatch, checkpoint, dry_run):
    hub.shutdown()
    hub.server_close()
    assert "did not finish (" in failed_upload(capsys, monkeypatch, checkpoint, dry_run)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in failed_upload(capsys, monkeypatch, checkpoint, dry_run)


def test_what_is_to_be_private_never_goes_to_a_public_repository(hub, capsys, monkeypatch, checkpoint, dry_run):
    upload(dry_run[0], NAME)
    error = failed_upload(capsys, monkeypatch, checkpoint, dry_run, "--private")
    assert f"the repository '{NAME}' exists and is public: nothing was uploaded" in error
    assert hub.repositories[NAME]["commits"] == 1


@pytest.mark.parametrize("argument", ["model", "save_pretrained"])
def test_a_pushed_model_carries_its_code_and_stays_unpublished_here(hub, tmp_path, argument):
    model = AsymVLMModel(AsymVLMConfig(projection_dim=4))
    before = dict(vars(model.config))
    if argument == "model":
        model.push_to_hub(NAME)
    else:
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=NAME)
    assert vars(model.config) == before
    assert set(hub.files(NAME)) == CODE | {"config.json", "model.safetensors", "README.md"}
    assert json.loads(hub.files(NAME)["config.json"])["auto_map"] == AUTO_MAP
    model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))


def test_a_trainer_pushes_the_code_when_asked_and_never_while_training(hub, tmp_path):
    model = AsymVLMModel(AsymVLMConfig(projection_dim=4))
    arguments = AsymVLMTrainingArguments(
        str(tmp_path / "out"), hub_model_id=NAME, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    AsymVLMTrainer(model=model, args=arguments).push_to_hub()
    assert set(hub.files(NAME)) >= CODE | {"config.json", "model.safetensors"}
    assert not any(name.endswith((".bin", ".pt")) for name in hub.files(NAME))
    assert getattr(model.config, "auto_map", None) is None
    with pytest.raises(ValueError, match="Publish afterwards with `python -m modeling_asymvlm publish`"):
        AsymVLMTrainingArguments(str(tmp_path / "out"), push_to_hub=True)


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copied")


def refusal(capsys, *arguments) -> str:
    code, out, error = run(capsys, *arguments, "--dry-run")
    assert code == 2 and not out and error.count("\n") == 1, (code, out, error)
    return error


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "a b/c", "org/", "../x", "org/--x", "org/x.git"])
def test_a_malformed_repository_id_is_refused(checkpoint, capsys, repo_id):
    assert "--repo_id must be `organisation/name`" in refusal(capsys, checkpoint, f"--repo_id={repo_id}")


def test_wrong_arguments_end_in_one_sentence(checkpoint, tmp_path, capsys):
    assert "are required: --repo_id" in refusal(capsys, checkpoint)
    assert "is not an empty folder" in refusal(capsys, checkpoint, "--repo_id", NAME, "--output", checkpoint)
    code, _, error = run(capsys, checkpoint, "--repo_id", NAME, "--output", tmp_path)
    assert code == 2 and "--output goes with --dry_run" in error
    assert "there is no folder" in refusal(capsys, tmp_path / "nowhere", "--repo_id", NAME)
    assert "it has no config.json" in refusal(capsys, tmp_path, "--repo_id", NAME)
    make_tiny_clip().save_pretrained(tmp_path)
    assert "holds a model of type 'clip', not 'asymvlm'" in refusal(capsys, tmp_path, "--repo_id", NAME)


def test_without_measured_results_there_is_no_card_and_no_publishing(copied, capsys, monkeypatch):
    monkeypatch.setattr("modeling_asymvlm.publishing.upload.run_example_isolated", lambda example: "")
    head = json.loads((copied / "all_results.json").read_text())["head_fingerprint"]
    (copied / "all_results.json").write_text("{}")
    assert "holds no test results" in refusal(capsys, copied, "--repo_id", NAME)
    test = {"retrieval": {"text_to_image_recall@1": 0.5}}
    (copied / "all_results.json").write_text(json.dumps({"test": test, "head_fingerprint": head}))
    assert "all_results.json lacks 'num_images'" in refusal(capsys, copied, "--repo_id", NAME)
    (copied / "all_results.json").unlink()
    assert "a card states measured figures only: train or evaluate with" in refusal(capsys, copied, "--repo_id", NAME)


def test_a_checkpoint_that_does_not_load_is_refused(copied, capsys):
    weights = load_file(copied / "model.safetensors")
    del weights["text_head.output_layer.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    error = refusal(capsys, copied, "--repo_id", NAME)
    assert "cannot be loaded" in error and "missing keys text_head.output_layer.weight" in error
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "it has no model.safetensors" in refusal(capsys, copied, "--repo_id", NAME)
    (copied / "config.json").write_text("{")
    assert "config.json' is not JSON" in refusal(capsys, copied, "--repo_id", NAME)


def test_percentiles_of_other_head_weights_are_not_published(copied, capsys):
    AsymVLMModel.from_vlm_pretrained(make_tiny_clip(), distribution="power_spherical").save_pretrained(copied)
    assert "was made with other head weights" in refusal(capsys, copied, "--repo_id", NAME)


def test_all_the_shards_of_a_checkpoint_travel_and_nothing_outside_of_it(copied, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "modeling_asymvlm.publishing.upload.run_example_isolated", lambda example: "not executed here\n"
    )
    model = AutoModel.from_pretrained(copied)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="100KB")
    shards = {file.name for file in copied.glob("model-*.safetensors")}
    code, _, error = run(capsys, copied, "--repo_id", NAME, "--dry-run", "--output", tmp_path / "upload")
    assert code == 0, error
    assert len(shards) > 1 and {file.name for file in (tmp_path / "upload").glob("model-*")} == shards
    assert AutoModel.from_pretrained(tmp_path / "upload").num_parameters() == model.num_parameters()
    index = copied / "model.safetensors.index.json"
    (tmp_path / "outside.safetensors").write_text("of somebody else")
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}))
    assert "which does not lie beside it" in refusal(capsys, copied, "--repo_id", NAME)


def test_a_head_whose_backbone_is_a_folder_of_this_machine_is_refused(copied, capsys, tmp_path):
    make_tiny_clip().save_pretrained(tmp_path / "clip")
    AsymVLMModel.from_vlm_pretrained(tmp_path / "clip").save_pretrained(copied, save_backbone=False)
    error = refusal(capsys, copied, "--repo_id", NAME)
    assert "is not at a commit on the Hub" in error and "save_backbone=True" in error


def test_a_path_of_a_machine_is_refused(copied, capsys):
    settings = json.loads((copied / "processor_config.json").read_text())
    (copied / "processor_config.json").write_text(json.dumps({**settings, "cache": "/home/somebody/cache"}))
    assert "processor_config.json names '/home/somebody/cache'" in refusal(capsys, copied, "--repo_id", NAME)


def test_a_published_head_of_a_hub_backbone_names_it(copied, tmp_path, dry_run, capsys, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache"
    make_tiny_clip().save_pretrained(cache / "models--tests--clip" / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        "modeling_asymvlm.publishing.upload.run_example_isolated", lambda example: "not executed here\n"
    )
    model = AsymVLMModel.from_vlm_pretrained("tests/clip", revision=commit, cache_dir=str(cache))
    model.save_pretrained(copied)
    results = json.loads((copied / "all_results.json").read_text())
    (copied / "all_results.json").write_text(json.dumps({**results, "head_fingerprint": head_fingerprint(model)}))
    (copied / CALIBRATION_FILE).unlink()
    (copied / TENSORS_FILE).unlink()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    output = tmp_path / "upload"
    code, _, error = run(capsys, copied, "--repo_id", NAME, "--license", "mit", "--dry-run", "--output", output)
    assert code == 0, error
    data = ModelCard.load(output / "README.md").data
    assert (data.base_model, data.base_model_relation, data.license) == ("tests/clip", "adapter", "mit")
    assert f"`tests/clip` at commit `{commit}`" in (output / "README.md").read_text()
    assert all(name.startswith("text_head.") for name in load_file(output / "model.safetensors"))


def test_what_was_uploaded_loads(hub, dry_run, tmp_path, batch):
    upload(dry_run[0], NAME)
    for name, content in hub.files(NAME).items():
        (tmp_path / name).write_bytes(content)
    assert AutoConfig.from_pretrained(tmp_path).auto_map == AUTO_MAP
    with torch.no_grad():
        logits = [AutoModel.from_pretrained(folder)(**batch).logits_per_image for folder in (tmp_path, dry_run[0])]
    assert torch.equal(*logits)


@pytest.mark.parametrize("fingerprint", [None, "0" * 64])
def test_figures_of_other_weights_are_not_published(fingerprint, copied, capsys):
    results = json.loads((copied / "all_results.json").read_text())
    (copied / "all_results.json").write_text(json.dumps({**results, "head_fingerprint": fingerprint}))
    error = refusal(capsys, copied, "--repo_id", NAME)
    assert "all_results.json' has figures of other weights" in error and "evaluate the model again" in error
