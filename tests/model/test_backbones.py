"""Which models can be a backbone, and how their texts are prepared."""

import pytest
import torch
from transformers import BertConfig, Blip2Config, BlipConfig, CLIPConfig, SiglipConfig

from modeling_asymvlm import AsymVLMConfig
from modeling_asymvlm.model.backbones import backbone_class, embedding_dim, text_features_of
from modeling_asymvlm.model.text_inputs import prepare_text


@pytest.mark.parametrize("config", [CLIPConfig(), SiglipConfig()])
def test_dual_encoders_are_accepted(config):
    backbone_class(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BertConfig(),
            "'bert' is not an image–text model: .* BertModel .* lacks get_text_features and get_image_feat",
        ),
        (BlipConfig(), "'blip' is not supported: public BLIP checkpoints do not hold the projections"),
        (AsymVLMConfig(projection_dim=8), "'asymvlm' is not supported: it holds a head already"),
        (Blip2Config(), "'blip-2' is not supported: its retrieval head compares"),
    ],
)
def test_other_models_are_refused_with_the_reason(config, message):
    with pytest.raises(ValueError, match=message):
        backbone_class(config)


def test_a_configuration_without_a_width_is_named():
    class Widthless:
        model_type = "widthless"

    with pytest.raises(ValueError, match="'widthless' does not state the width"):
        embedding_dim(Widthless())


def test_padding_on_either_side_becomes_padding_on_the_right():
    expected = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 0, 0, 0]])
    contract = {"max_length": 5, "pad_token_id": 0, "use_attention_mask": False}
    right = torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    left = torch.tensor([[1, 5, 6, 7], [1, 1, 8, 9]]), torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]])
    for input_ids, attention_mask in (right, left):
        prepared = prepare_text(input_ids, attention_mask, **contract)
        assert torch.equal(prepared["input_ids"], expected)
        assert prepared["attention_mask"] is None
    assert torch.equal(prepare_text(expected, None, **contract)["input_ids"], expected)
    with_mask = prepare_text(*left, left[0] % 2, max_length=9, pad_token_id=None, use_attention_mask=True)
    assert with_mask["input_ids"].tolist() == [[5, 6, 7, 1], [8, 9, 1, 1]]
    assert with_mask["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert with_mask["token_type_ids"].tolist() == [[1, 0, 1, 1], [0, 1, 1, 1]]


def test_a_long_text_is_cut_and_keeps_its_last_token():
    input_ids = torch.tensor([[97, 5, 6, 7, 8, 98], [97, 9, 98, 1, 1, 1]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    prepared = prepare_text(
        input_ids, attention_mask, max_length=4, pad_token_id=None, use_attention_mask=True
    )  # fmt: skip
    assert prepared["input_ids"].tolist() == [[97, 5, 6, 98], [97, 9, 98, 1]]
    assert prepared["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    with pytest.raises(ValueError, match="have 6 tokens, the backbone's context 4: pass attention_mask"):
        prepare_text(input_ids, None, max_length=4, pad_token_id=None, use_attention_mask=True)


def test_padding_without_a_padding_token_is_an_error():
    with pytest.raises(ValueError, match="set text_pad_token_id"):
        prepare_text(torch.ones(1, 3).long(), None, max_length=5, pad_token_id=None, use_attention_mask=False)
    with pytest.raises(ValueError, match="set text_max_length"):
        prepare_text(torch.ones(1, 3).long(), None, max_length=None, pad_token_id=0, use_attention_mask=False)


@pytest.mark.parametrize(
    ("output", "found"), [(torch.zeros(2, 3, 4), r"a tensor of shape \(2, 3, 4\)"), (torch.zeros(4), "of shape")]
)
def test_features_that_are_not_one_vector_a_text_are_refused(output, found):
    class Backbone:
        config = CLIPConfig()

        def get_text_features(self, **inputs):
            return output

    with pytest.raises(ValueError, match=f"Backbone.get_text_features must give one vector per sample.*{found}"):
        text_features_of(Backbone(), input_ids=None)
