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

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.backbone_code import with_loaded_code
from modeling_asymvlm.backbones import RemoteCodeConfig


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


@pytest.mark.parametrize("reference", ["../evil.Model", "a/../../evil.Model", "modeling_duo", None, ["x.Y", None]])
def test_a_reference_that_is_no_module_beside_the_checkpoint_runs_nothing(workplace, reference):
    snapshot = workplace / "cache" / "models--tests--duo" / "snapshots" / COMMIT
    auto_map = {"AutoConfig": "configuration_duo.DuoConfig", "AutoModel": reference}
    config = RemoteCodeConfig(code_model_type="duo", auto_map=auto_map)
    with pytest.raises(
        ValueError, match=f"auto_map gives {re.escape(repr(reference))} for AutoModel.*No code was run"
    ):
        with_loaded_code(config, snapshot)
    assert not (workplace / "code-has-run").exists()
