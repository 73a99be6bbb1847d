"""AsymVLMConfig: what it copies, resolves, refuses and keeps over saving."""

import copy

import pytest
from transformers import AutoConfig, CLIPConfig, SiglipConfig

from modeling_asymvlm import AsymVLMConfig


def test_the_width_and_text_contract_come_from_the_backbone():
    clip = AsymVLMConfig(vlm_config=CLIPConfig(projection_dim=256))
    assert (clip.projection_dim, clip.text_max_length, clip.text_use_attention_mask) == (256, 77, True)
    siglip = AsymVLMConfig(vlm_config=SiglipConfig(text_config={"projection_size": 96}))
    assert (siglip.projection_dim, siglip.text_max_length, siglip.text_use_attention_mask) == (96, 64, False)


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_the_configuration_handed_in_is_copied(as_dictionary):
    backbone = CLIPConfig()
    backbone._attn_implementation = "sdpa"
    handed_in = backbone.to_dict() if as_dictionary else backbone
    before = copy.deepcopy(handed_in)
    config = AsymVLMConfig(vlm_config=handed_in)
    config.vlm_config.projection_dim = 7
    config.vlm_config.text_config.hidden_size = 7
    assert (handed_in if as_dictionary else handed_in.to_dict()) == (before if as_dictionary else before.to_dict())
    assert backbone._attn_implementation == "sdpa"
    assert backbone.text_config._attn_implementation == "sdpa"


def test_saving_and_loading_keeps_every_value(tmp_path):
    config = AsymVLMConfig(
        vlm_config=SiglipConfig(text_config={"hidden_size": 96, "projection_size": 96}),
        distribution="vmf",
        mean_direction="backbone",
        normalizer="paper",
        hidden_dropout_prob=0.5,
        input_dropout_prob=0.25,
        normalize_text_features=True,
        initial_concentration=60.0,
        text_pad_token_id=1,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AsymVLMConfig)
    assert isinstance(loaded.vlm_config, SiglipConfig)
    expected = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    assert {name: loaded.to_dict()[name] for name in expected} == expected


def test_a_configuration_without_a_backbone_can_be_saved(tmp_path):
    AsymVLMConfig(projection_dim=32).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.vlm_config is None
    assert loaded.projection_dim == 32
    assert AsymVLMConfig().projection_dim is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"distribution": "gaussian"},
            "Unknown distribution 'gaussian': choose one of vmf, power_spherical, determin",
        ),
        ({"normalizer": "none"}, "Unknown normalizer 'none': choose one of exact, paper"),
        ({"mean_direction": "both"}, "Unknown mean_direction 'both': choose one of learned, refined, backbone"),
        ({"distribution": "deterministic", "mean_direction": "backbone"}, "leaves nothing to learn"),
        ({"projection_dim": 1}, "projection_dim must be an integer of at least 2, got 1"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer of at least 0, got -1"),
        ({"logit_scale_init": 0.0}, "logit_scale_init must be above 0 and finite, got 0.0"),
        ({"initial_concentration": float("nan")}, "initial_concentration must be above 0 and finite, got nan"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\), got 1.0"),
        ({"input_dropout_prob": -0.1}, r"input_dropout_prob must lie in \[0, 1\), got -0.1"),
        ({"normalize_text_features": "yes"}, "normalize_text_features must be true or false, got 'yes'"),
        ({"hidden_act": "rely"}, "Unknown hidden_act 'rely': choose one of"),
        ({"vlm_config": {"model_type": "no-such-model"}}, "`model_type` of a backbone .* got 'no-such-model'"),
        ({"concentration_floor": 1.0}, "Unknown fields in an AsymVLM .* concentration_floor. .* upgrade"),
        ({"vlm_config": "openai/clip"}, "must be a configuration or a dictionary, got 'openai/clip': .*from_vlm_pre"),
        ({"vlm_config": {"projection_dim": 3}}, "`model_type` of a backbone .* got None"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AsymVLMConfig(**arguments)
