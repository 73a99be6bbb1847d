"""Leaving words out: against the model's own output for texts shortened by hand."""

import pytest
import torch

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.texts.words import word_spans, word_uncertainty
from tests.support.training import learned


@pytest.fixture
def model(tiny_clip) -> AsymVLMModel:
    torch.manual_seed(1)
    return AsymVLMModel.from_vlm_pretrained(tiny_clip, **learned()).eval()


def uncertainty_of(model, tiny_processor, text: str) -> float:
    with torch.no_grad():
        return (1 / model(**tiny_processor(text=[text], return_tensors="pt")).concentration).item()


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_each_word_has_the_uncertainty_of_the_text_without_it(model, tiny_processor, batch_size):
    result = word_uncertainty(model, tiny_processor, "red 3 picture 17", batch_size=batch_size)
    assert result.uncertainty == pytest.approx(uncertainty_of(model, tiny_processor, "red 3 picture 17"), rel=1e-6)
    shortened = ["3 picture 17", "red picture 17", "red 3 17", "red 3 picture"]
    expected = [uncertainty_of(model, tiny_processor, text) for text in shortened]
    assert [word.uncertainty_without for word in result.words] == pytest.approx(expected, rel=1e-6)
    for word in result.words:
        assert word.reduction == word.uncertainty_without - result.uncertainty
    assert len({word.reduction for word in result.words}) == 4


def test_spans_are_those_of_the_text_as_it_was_typed(model, tiny_processor):
    text = " red,  red\n 5\t"
    result = word_uncertainty(model, tiny_processor, text)
    assert [text[word.start : word.end] for word in result.words] == ["red,", "red", "5"]
    assert [word.word for word in result.words] == text.split()
    assert result.text == text


def test_a_tokenizer_does_what_its_processor_does(model, tiny_processor):
    of_tokenizer = word_uncertainty(model, tiny_processor.tokenizer, "red 3 picture")
    assert of_tokenizer == word_uncertainty(model, tiny_processor, "red 3 picture")


def test_nothing_is_left_without_an_only_word(model, tiny_processor):
    result = word_uncertainty(model, tiny_processor, " picture ")
    assert result.uncertainty == pytest.approx(uncertainty_of(model, tiny_processor, "picture"), rel=1e-6)
    (word,) = result.words
    assert (word.word, word.start, word.end, word.uncertainty_without, word.reduction) == ("picture", 1, 8, None, None)


def test_words_in_any_white_space():
    assert word_spans("a\u3000b\u00a0c") == [(0, 1), (2, 3), (4, 5)]
    assert word_spans("  ") == []


def test_texts_that_say_nothing_or_too_much_are_refused(model, tiny_processor):
    for text in ("", " \n"):
        with pytest.raises(ValueError, match="empty: write something"):
            word_uncertainty(model, tiny_processor, text)
    with pytest.raises(ValueError, match="17 tokens, but the context of the backbone is 16: shorten"):
        word_uncertainty(model, tiny_processor, " ".join(["red"] * 16))
    with pytest.raises(TypeError, match="pass a string"):
        word_uncertainty(model, tiny_processor, None)


def test_a_deterministic_model_has_no_uncertainty(tiny_clip, tiny_processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution="deterministic")
    with pytest.raises(ValueError, match="no concentration"):
        word_uncertainty(model, tiny_processor, "red picture")
