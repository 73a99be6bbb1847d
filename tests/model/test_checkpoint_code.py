"""Code that travels with a checkpoint: when it does, what it may import, and what it gives without this package."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, Trainer, pipeline
from transformers.dynamic_module_utils import get_relative_imports

import modeling_asymvlm
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.checkpoint_code import AUTO_MAP, check_auto_map, code_files, published, unchanged
from tests.support.tiny_models import make_tiny_clip, make_tiny_processor


PACKAGE = Path(modeling_asymvlm.__file__).parent / "model"
CODE = {file.name for file in code_files()}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = ["red picture", "picture 3"]

ISOLATED_PROGRAM = """
import sys


class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_asymvlm":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, Refuses())
try:
    import modeling_asymvlm
except ModuleNotFoundError:
    pass
else:
    sys.exit("the package is importable")

import json
import os
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

name, folder = sys.argv[1:]
try:
    AutoModel.from_pretrained(name)
except ValueError as error:
    refusal = str(error)
executed_without_the_flag = os.path.exists(os.environ["HF_MODULES_CACHE"])
model = AutoModel.from_pretrained(name, trust_remote_code=True)
AutoProcessor.from_pretrained(name, trust_remote_code=True)
batch = load_file(folder + "/batch.safetensors")
with torch.no_grad():
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    image = model.get_image_features(batch["pixel_values"]).pooler_output
    logits = model(**batch).logits_per_image.contiguous()
save_file({"text": text, "image": image, "logits": logits}, folder + "/outputs.safetensors")
classify = pipeline("zero-shot-image-classification", model=name, trust_remote_code=True)
scores = classify(Image.open(folder + "/picture.png"), candidate_labels=json.loads(os.environ["LABELS"]))
model.save_pretrained(folder + "/again")
for_zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(folder + "/again", trust_remote_code=True)
trainable = {name for name, parameter in for_zero_shot.named_parameters() if parameter.requires_grad}
report = {
    "refusal": refusal,
    "executed_without_the_flag": executed_without_the_flag,
    "module": type(model).__module__,
    "config_module": type(model.config).__module__,
    "own_modules": [module for module in sys.modules if module.partition(".")[0] == "modeling_asymvlm"],
    "scores": scores,
    "again": sorted(os.listdir(folder + "/again")),
    "trainable": sorted(trainable),
}
with open(folder + "/report.json", "w") as file:
    json.dump(report, file)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A published checkpoint with its processor."""
    folder = tmp_path_factory.mktemp("published") / "tiny-asymvlm.v1"
    model = AsymVLMModel.from_vlm_pretrained(make_tiny_clip(), distribution="vmf").eval()
    with published(model.config):
        model.save_pretrained(folder)
    make_tiny_processor().save_pretrained(folder)
    return folder


def imports(file: Path) -> tuple[set[str], set[str]]:
    """The names of a file's relative and absolute imports, the former checked to be flat and at the top level."""
    relative, absolute = set(), set()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module and "." not in node.module, f"{file.name}:{node.lineno}"
            assert node in tree.body, f"{file.name}:{node.lineno} is not at the top level"
            relative.add(node.module)
    return relative, absolute


def test_the_travelling_files_import_one_another_torch_and_transformers_only():
    found, waiting = set(), {"modeling_asymvlm", "configuration_asymvlm"}
    while waiting:
        name = waiting.pop()
        found.add(name + ".py")
        relative, absolute = imports(PACKAGE / f"{name}.py")
        # transformers looks for imports line by line, in docstrings too: it must find these and no others.
        assert set(get_relative_imports(PACKAGE / f"{name}.py")) == relative, name
        assert absolute <= {"torch", "transformers", *sys.stdlib_module_names}, name
        waiting |= {other for other in relative if other + ".py" not in found}
    assert found == CODE


def test_importing_the_package_registers_and_changes_no_class():
    assert AsymVLMModel._auto_class is None and AsymVLMConfig._auto_class is None
    assert AutoConfig.for_model("asymvlm", projection_dim=4).__class__ is AsymVLMConfig


def test_an_unpublished_model_is_saved_without_code(tiny_clip, tmp_path):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    model.save_pretrained(tmp_path / "plain")
    arguments = transformers.TrainingArguments(str(tmp_path / "trainer"), report_to="none")
    Trainer(model, arguments).save_model()
    for folder in ("plain", "trainer"):
        assert not list((tmp_path / folder).glob("*.py"))
        assert "auto_map" not in json.loads((tmp_path / folder / "config.json").read_text())


def test_a_published_checkpoint_loads_through_the_local_class_and_keeps_its_code(checkpoint, tmp_path):
    assert {file.name for file in checkpoint.glob("*.py")} == CODE
    for arguments in ({}, {"trust_remote_code": True}):
        model = AutoModel.from_pretrained(checkpoint, **arguments)
        assert type(model) is AsymVLMModel
        model.save_pretrained(tmp_path / "again")
        model.config.save_pretrained(tmp_path / "config")
        for folder in ("again", "config"):
            assert {file.name: file.read_bytes() for file in (tmp_path / folder).glob("*.py")} == {
                file.name: file.read_bytes() for file in checkpoint.glob("*.py")
            }
            assert json.loads((tmp_path / folder / "config.json").read_text())["auto_map"] == AUTO_MAP


@pytest.mark.parametrize("is_published", [False, True])
def test_a_failed_save_changes_nothing_in_memory(tiny_clip, tmp_path, monkeypatch, is_published):
    tiny_clip.save_pretrained(tmp_path / "clip")
    model = AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", dtype=torch.bfloat16)
    model.config.dtype = model.config.architectures = None
    if is_published:
        model.config.auto_map = {"AutoModel": AUTO_MAP["AutoModel"]}
    before = model.config.to_dict(), dict(vars(model.config)), model._keys_to_ignore_on_save

    def fail(*arguments, **keywords):
        raise OSError("no space left")

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", fail)
    for save_backbone in (True, False):
        with pytest.raises(OSError, match="no space left"):
            model.save_pretrained(tmp_path / "saved", save_backbone=save_backbone)
        assert (model.config.to_dict(), dict(vars(model.config)), model._keys_to_ignore_on_save) == before
    monkeypatch.setattr(transformers.utils.hub.HfApi, "create_repo", fail)
    for push in (
        lambda: model.push_to_hub("a/b"),
        lambda: model.save_pretrained(tmp_path / "saved", push_to_hub=True),
    ):
        with pytest.raises(OSError, match="no space left"):
            push()
        assert (model.config.to_dict(), dict(vars(model.config)), model._keys_to_ignore_on_save) == before


def test_what_is_done_to_a_configuration_is_undone():
    config = AsymVLMConfig(projection_dim=4, auto_map={"AutoModel": AUTO_MAP["AutoModel"]})
    before = config.to_dict()
    with unchanged(config):
        config.auto_map["AutoConfig"] = AUTO_MAP["AutoConfig"]
        config.architectures, config.hidden_size = ["Other"], 7
        del config.distribution
        assert config.to_dict() != before
    assert config.to_dict() == before


@pytest.mark.parametrize("layout", ["folder", "hub"])
def test_a_checkpoint_gives_the_same_where_the_package_is_not_installed(checkpoint, batch, tmp_path, layout):
    name, home = str(checkpoint), tmp_path / "home"
    if layout == "hub":
        name, repository = "org/tiny-asymvlm.v1", home / "hub" / "models--org--tiny-asymvlm.v1"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        (repository / "snapshots").mkdir()
        (repository / "snapshots" / COMMIT).symlink_to(checkpoint)
    save_file(batch, tmp_path / "batch.safetensors")
    Image.new("RGB", (32, 32), (200, 30, 60)).save(tmp_path / "picture.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "LABELS": json.dumps(LABELS),
    }
    result = subprocess.run(
        [sys.executable, "-I", "-c", ISOLATED_PROGRAM, name, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["own_modules"] and not report["executed_without_the_flag"]
    assert "trust_remote_code=True" in report["refusal"]
    prefix = f"transformers_modules.org.tiny_hyphen_asymvlm_dot_v1.{COMMIT}."
    expected_prefix = prefix if layout == "hub" else "transformers_modules.tiny_hyphen_asymvlm_dot_v1."
    assert report["module"].startswith(expected_prefix) and report["config_module"].startswith(expected_prefix)

    model = AutoModel.from_pretrained(checkpoint)
    outputs = load_file(tmp_path / "outputs.safetensors")
    with torch.no_grad():
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        assert torch.equal(outputs["text"], text)
        assert torch.equal(outputs["image"], model.get_image_features(batch["pixel_values"]).pooler_output)
        assert torch.equal(outputs["logits"], model(**batch).logits_per_image)
    classify = pipeline("zero-shot-image-classification", model=str(checkpoint))
    assert report["scores"] == classify(Image.open(tmp_path / "picture.png"), candidate_labels=LABELS)
    assert CODE | {"config.json", "model.safetensors"} == set(report["again"])
    assert report["trainable"] and all(name.startswith("text_head.") for name in report["trainable"])
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP


def test_the_processor_of_a_published_checkpoint_needs_no_question(checkpoint):
    assert AutoProcessor.from_pretrained(checkpoint).tokenizer is not None


@pytest.fixture
def modules_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "modules"


def write_repository(folder: Path, auto_map: dict, **config) -> Path:
    """A repository with `evil.py`, beside it and above it, that leaves a marker if it is executed."""
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        (place / "evil.py").write_text(f"open({str(folder.parent / 'executed')!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map, **config}))
    return folder


def assert_nothing_was_executed(folder: Path, modules: Path) -> None:
    assert not (folder.parent / "executed").exists()
    assert not list(modules.rglob("evil*"))


@pytest.mark.parametrize("reference", ["../evil.Model", "..evil.Model", "../../x--evil.Model", "sub/../evil.Model"])
def test_code_outside_of_the_repository_is_refused(tmp_path, modules_cache, reference):
    auto_map = {"AutoConfig": reference, "AutoModel": reference}
    ours = write_repository(tmp_path / "a" / "ours", auto_map, model_type="asymvlm", projection_dim=4)
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AsymVLMModel.from_pretrained):
        with pytest.raises(ValueError, match="names the code of AutoConfig as .* in the repository itself"):
            load(ours, trust_remote_code=True)
    assert_nothing_was_executed(ours, modules_cache)
    # A type that this package does not know is the library's to refuse.
    other = write_repository(tmp_path / "b" / "other", auto_map, model_type="evil")
    with pytest.raises((ValueError, OSError)):
        AutoModel.from_pretrained(other, trust_remote_code=True)
    assert_nothing_was_executed(other, modules_cache)


def test_well_formed_code_references_are_let_through():
    check_auto_map(None)
    check_auto_map({**AUTO_MAP, "AutoTokenizer": [None, "org/repo.v1--tokenization_x.XTokenizer"]})


def test_remote_code_without_the_flag_is_not_executed(tmp_path, modules_cache):
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    folder = write_repository(tmp_path / "a" / "other", auto_map, model_type="evil")
    for load in (AutoModel.from_pretrained, AsymVLMModel.from_vlm_pretrained):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            load(folder)
    assert_nothing_was_executed(folder, modules_cache)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "sub/shard.safetensors", "..\\a"])
def test_weights_outside_of_the_repository_are_refused(checkpoint, tmp_path, name):
    folder = tmp_path / "sharded"
    AutoModel.from_pretrained(checkpoint).save_pretrained(folder, max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert AutoModel.from_pretrained(folder).num_parameters() > 0
    first = next(iter(content["weight_map"]))
    (folder / content["weight_map"][first]).rename(tmp_path / "outside.safetensors")
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="which does not lie beside it"):
        AutoModel.from_pretrained(folder)
    make_tiny_clip().save_pretrained(tmp_path / "clip", max_shard_size="40KB")
    index = tmp_path / "clip" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"logit_scale": name}}))
    with pytest.raises(ValueError, match="which does not lie beside it"):
        AsymVLMModel.from_vlm_pretrained(tmp_path / "clip")
