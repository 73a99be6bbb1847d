"""Configurations that other tools write into: kept and passed on, unless a later format changes the meaning."""

import json
import logging

import pytest
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.configuration_asymvlm import CONFIG_FORMAT


# What was found in configurations on the Hub, and what transformers' own common tests set.
FOREIGN = {
    "note": "x",
    "license": "apache-2.0",
    "task_specific_params": {"retrieval": {"k": 3}},
    "transformers.js_config": {"dtype": "q8"},
    "unsloth_version": "2026.1",
    "layer_norm_eps": 1.0,
    "tags": ["a", "b"],
}


@pytest.fixture
def heard(caplog, monkeypatch):
    """The warnings of transformers' loggers, each of them given anew."""
    transformers_logging.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_field_survives_saving_loading_and_saving_again(clip, tmp_path, name):
    model = AutoModel.from_pretrained(clip.folder)
    setattr(model.config, name, FOREIGN[name])
    for number in range(2):
        model.save_pretrained(tmp_path / str(number))
        model = AutoModel.from_pretrained(tmp_path / str(number))
        assert getattr(model.config, name) == FOREIGN[name]
    clip.check(model)
    assert getattr(AsymVLMConfig(**model.config.to_dict()), name) == FOREIGN[name]


def test_foreign_fields_are_named_in_one_warning(clip, tmp_path, heard):
    model = AutoModel.from_pretrained(clip.folder)
    for name, value in FOREIGN.items():
        setattr(model.config, name, value)
    model.config.tokenizer_class = "CLIPTokenizer"  # one of transformers' own
    model.save_pretrained(tmp_path)
    for _ in range(2):
        AutoModel.from_pretrained(tmp_path)
    (warning,) = [message for message in heard() if "does not use" in message]
    assert all(name in warning for name in FOREIGN)
    assert "tokenizer_class" not in warning


def test_every_family_keeps_foreign_fields_beside_its_own(checkpoint, tmp_path):
    config = AutoConfig.from_pretrained(checkpoint.folder)
    for name, value in FOREIGN.items():
        setattr(config, name, value)
        setattr(config.vlm_config, name, value)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in FOREIGN} == FOREIGN
    assert {name: getattr(loaded.vlm_config, name) for name in FOREIGN} == FOREIGN
    expected = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    assert {name: loaded.to_dict()[name] for name in expected} == expected


def test_the_format_is_written_and_a_later_one_is_refused(clip, tmp_path):
    AutoModel.from_pretrained(clip.folder).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["format"] == CONFIG_FORMAT
    for later in (CONFIG_FORMAT + 1, "2", 0):
        (tmp_path / "config.json").write_text(json.dumps({**written, "format": later, "head_depth": 3}))
        with pytest.raises(ValueError, match=f"format {later!r}.*{CONFIG_FORMAT} at most: upgrade"):
            AsymVLMModel.from_pretrained(tmp_path)
    del written["format"]
    (tmp_path / "config.json").write_text(json.dumps(written))  # of the first checkouts
    clip.check(AutoModel.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    "field", [{"distribution": "gaussian"}, {"mean_direction": "curved"}, {"normalizer": "rough"}]
)
def test_an_unknown_meaning_in_a_saved_configuration_is_refused(clip, tmp_path, field):
    AutoModel.from_pretrained(clip.folder).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, **field}))
    with pytest.raises(ValueError, match="Unknown .*choose one of"):
        AutoModel.from_pretrained(tmp_path)


def test_a_typo_in_an_argument_is_refused():
    with pytest.raises(ValueError, match="Unknown fields in an AsymVLM configuration: distributon. Correct"):
        AsymVLMConfig(projection_dim=8, distributon="vmf")


def test_the_parts_are_found_where_composite_configurations_have_them(checkpoint):
    config = checkpoint.model.config
    assert config.get_text_config() is config.text_config is config.vlm_config.text_config
    assert config.vision_config is config.vlm_config.vision_config
    alone = AsymVLMConfig(projection_dim=8)
    assert alone.get_text_config() is alone
    assert not hasattr(alone, "text_config") and not hasattr(alone, "vision_config")
