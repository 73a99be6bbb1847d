"""A backbone that is no part of transformers: its code runs when, and only when, the user allows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model import backbone_code
from modeling_asymvlm.model.backbone_code import save_code, with_loaded_code
from modeling_asymvlm.model.backbones import RemoteCodeConfig, text_features_of
from tests.support.tiny_backbones import tiny_backbone


COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIGURATION = """
from pathlib import Path
from transformers import PreTrainedConfig

Path("{marker}").touch()


class DuoConfig(PreTrainedConfig):
    model_type = "duo"

    def __init__(self, projection_dim=12, text_config=None, **kwargs):
        self.projection_dim = projection_dim
        self.vocab_size = 50
        super().__init__(**kwargs)
"""
MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_duo import DuoConfig


class DuoModel(PreTrainedModel):
    config_class = DuoConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.projection_dim)
        self.pixels = nn.Linear(3, config.projection_dim)
        self.post_init()

    def get_text_features(self, input_ids, attention_mask):
        weights = attention_mask / attention_mask.sum(1, keepdim=True)
        return (self.words(input_ids) * weights[..., None]).sum(1)

    def get_image_features(self, pixel_values):
        return self.pixels(pixel_values.mean((2, 3)))
"""
PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file
import modeling_asymvlm
from modeling_asymvlm import AsymVLMModel
from transformers import AutoModel

action, cache, trust, *sources = sys.argv[1:]
options = {"trust_remote_code": True} if trust == "trust" else {}
options |= {"cache_dir": cache} if cache else {}
batch = load_file("batch.safetensors")
for source in sources:
    try:
        if action == "compose":
            model = AsymVLMModel.from_vlm_pretrained(source, **options)
        else:
            model = AutoModel.from_pretrained(source, **options)
            again = AsymVLMModel.from_pretrained(source, **options)
            assert torch.equal(again.text_head.output_layer.weight, model.text_head.output_layer.weight)
    except ValueError as error:
        print("ValueError:", " ".join(str(error).split()))
        continue
    with torch.no_grad():
        logits = model.eval()(**batch).logits_per_image
    if action == "compose":
        model.save_pretrained("saved/whole", save_backbone=True)
        model.save_pretrained("saved/head", save_backbone=False)
        features = model.backbone_text_features(batch["input_ids"], batch["attention_mask"])
        save_file({"features": features}, "native.safetensors")
        save_file({"logits": logits.contiguous()}, "expected.safetensors")
    print(torch.equal(logits, load_file("expected.safetensors")["logits"]))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a repository of code and weights, a batch, and a marker that tells whether the code has run."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    repository = tmp_path / "cache" / "models--tests--duo"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "configuration_duo.py").write_text(CONFIGURATION.format(marker=tmp_path / "code-has-run"))
    (snapshot / "modeling_duo.py").write_text(MODEL)
    auto_map = {"AutoConfig": "configuration_duo.DuoConfig", "AutoModel": "modeling_duo.DuoModel"}
    config = {"model_type": "duo", "architectures": ["DuoModel"], "auto_map": auto_map, "projection_dim": 12}
    (snapshot / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "words.weight": torch.randn(50, 12, generator=generator),
        "pixels.weight": torch.randn(12, 3, generator=generator),
        "pixels.bias": torch.zeros(12),
    }
    save_file(weights, snapshot / "model.safetensors", metadata={"format": "pt"})
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "pixel_values": torch.randn(2, 3, 8, 8, generator=generator),
    }
    save_file(batch, tmp_path / "batch.safetensors")
    return tmp_path


def run(folder: Path, action: str, *sources: Path | str, cache: str = "", trust: str = "trust") -> list[str]:
    """What a new process prints for each source."""
    command = [sys.executable, "-c", PROGRAM, action, cache, trust, *map(str, sources)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_a_backbone_of_remote_code_composes_saves_and_loads(workplace, place):
    snapshot = workplace / "cache" / "models--tests--duo" / "snapshots" / COMMIT
    source, cache = ("tests/duo", str(workplace / "cache")) if place == "hub" else (snapshot, "")
    saved = [workplace / "saved" / kind for kind in ("whole", "head")]
    assert run(workplace, "compose", source, cache=cache) == ["True"]
    words = load_file(snapshot / "model.safetensors")["words.weight"]
    features = load_file(workplace / "native.safetensors")["features"]
    torch.testing.assert_close(features[1], (words[8] + words[9]) / 2)
    assert run(workplace, "load", *saved, cache=cache) == ["True", "True"]

    (workplace / "code-has-run").unlink()
    for message in run(workplace, "load", *saved, cache=cache, trust=""):
        assert message.startswith(
            "ValueError: Backbone 'duo' is no part of transformers; its code lies in a repository"
        )
        assert "trust_remote_code=True" in message
    assert not (workplace / "code-has-run").exists()
    config = AutoConfig.from_pretrained(saved[0])
    assert config.projection_dim == 12
    with pytest.raises(ValueError, match="Backbone 'duo' is no part of transformers"):
        AsymVLMModel(config)


def test_a_whole_checkpoint_carries_code_from_a_folder(workplace):
    snapshot = workplace / "cache" / "models--tests--duo" / "snapshots" / COMMIT
    run(workplace, "compose", snapshot)
    for file in snapshot.iterdir():
        file.unlink()
    assert run(workplace, "load", workplace / "saved" / "whole") == ["True"]


def test_composing_without_the_flag_runs_nothing(workplace):
    (message,) = run(workplace, "compose", "tests/duo", cache=str(workplace / "cache"), trust="")
    assert "trust_remote_code=True" in message
    assert not (workplace / "code-has-run").exists()
    assert not (workplace / "saved").exists()


@pytest.mark.parametrize(
    "reference",
    [
        "../evil.Model",
        "a/../../evil.Model",
        "..--modeling_duo.DuoModel",
        "modeling_duo",
        None,
        ["modeling_duo.DuoModel"],
    ],
)
@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel"])
def test_a_reference_that_is_no_module_beside_the_checkpoint_runs_nothing(workplace, name, reference):
    snapshot = workplace / "cache" / "models--tests--duo" / "snapshots" / COMMIT
    config = json.loads((snapshot / "config.json").read_text())
    config["auto_map"][name] = reference
    (snapshot / "config.json").write_text(json.dumps(config))
    for load in (
        lambda: AsymVLMModel.from_vlm_pretrained(snapshot, trust_remote_code=True),
        lambda: with_loaded_code(RemoteCodeConfig(code_model_type="duo", auto_map=config["auto_map"]), snapshot),
    ):
        with pytest.raises(ValueError, match=re.escape(repr(reference))):
            load()
    assert not (workplace / "code-has-run").exists()


def test_the_stand_in_for_unknown_code_survives_a_round_trip():
    values = {"model_type": "duo", "auto_map": {"AutoModel": "modeling_duo.DuoModel"}, "colour": "red"}
    config = AsymVLMConfig(vlm_config=values, projection_dim=12)
    again = AsymVLMConfig.from_dict(config.to_dict())
    for each in (config, again):
        written = each.to_dict()["vlm_config"]
        assert {name: written[name] for name in values} == values
        assert "code_model_type" not in written


def test_code_of_a_backbone_never_replaces_the_models_own(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone_code, "custom_object_save", lambda part, place: Path(place, "text_head.py").touch())
    with pytest.raises(ValueError, match="The backbone's code has the file 'text_head.py', and so has AsymVLM's"):
        save_code(tiny_backbone("clip"), tmp_path / "saved")
    assert not (tmp_path / "saved" / "text_head.py").exists()


@pytest.mark.parametrize("takes", ["kwargs", "names"])
def test_the_attention_mask_reaches_a_backbone_that_takes_what_it_is_given(takes):
    class Backbone:
        config = RemoteCodeConfig()

    received = {}

    def with_kwargs(input_ids, **kwargs):
        received.update(kwargs)
        return torch.zeros(1, 2)

    def with_names(input_ids, attention_mask=None):
        received.update(attention_mask=attention_mask)
        return torch.zeros(1, 2)

    backbone = Backbone()
    backbone.get_text_features = with_kwargs if takes == "kwargs" else with_names
    mask = torch.ones(1, 3)
    text_features_of(backbone, input_ids=torch.ones(1, 3), attention_mask=mask, token_type_ids=mask)
    assert list(received) == ["attention_mask"] and received["attention_mask"] is mask
