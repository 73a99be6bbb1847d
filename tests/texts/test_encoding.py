"""One encoder for all texts: what each gives alone, whatever stands beside it, is cut or is refused."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.texts import tokenization
from modeling_asymvlm.texts.encoding import encode_texts, text_concentration
from modeling_asymvlm.texts.tokenization import tokenize_texts
from tests.support.training import learned


TEXTS = ["red 3", "picture", "1 2 3 4 5 6 7 8 9", "red", "picture 17 red", "red 3", "5 6 7", " 9\n10 "]
LONG = " ".join(str(number) for number in range(18))  # 19 tokens, of which the context takes 16
AS_CUT = " ".join(str(number) for number in range(15))


@pytest.fixture(params=["tiny_clip", "tiny_siglip"])
def model(request) -> AsymVLMModel:
    backbone = request.getfixturevalue(request.param)
    torch.manual_seed(1)
    model = AsymVLMModel.from_vlm_pretrained(backbone, text_pad_token_id=1, **learned(distribution="vmf")).eval()
    torch.nn.init.normal_(model.text_head.output_layer.weight, std=0.1)
    return model


def alone(model, processor, texts) -> torch.Tensor:
    """Each text through the processor and the model on its own."""
    with torch.no_grad():
        inputs = [processor(text=[text], return_tensors="pt") for text in texts]
        return torch.cat([model.get_text_features(**tokens).pooler_output for tokens in inputs])


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_each_text_has_what_it_has_alone_in_any_batch_and_order(model, tiny_processor, batch_size):
    expected = alone(model, tiny_processor, TEXTS)
    assert len({tuple(row) for row in expected.tolist()}) == len(TEXTS) - 1
    eta = encode_texts(model, tiny_processor, TEXTS, batch_size=batch_size)
    assert eta.dtype == torch.float32 and eta.device == model.device and not eta.requires_grad
    torch.testing.assert_close(eta, expected, rtol=1e-5, atol=1e-6)
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(batch_size))
    shuffled = encode_texts(model, tiny_processor, [TEXTS[row] for row in order], batch_size=batch_size)
    torch.testing.assert_close(shuffled, expected[order], rtol=1e-5, atol=1e-6)


def test_one_string_and_a_tokenizer_will_do(model, tiny_processor):
    eta = encode_texts(model, tiny_processor, TEXTS)
    torch.testing.assert_close(encode_texts(model, tiny_processor, TEXTS[2]), eta[2:3], rtol=1e-5, atol=1e-6)
    assert torch.equal(encode_texts(model, tiny_processor.tokenizer, tuple(TEXTS)), eta)


def test_a_model_in_float64_keeps_its_digits(model, tiny_processor):
    eta = encode_texts(model.double(), tiny_processor, TEXTS, batch_size=3)
    torch.testing.assert_close(eta, alone(model, tiny_processor, TEXTS), rtol=1e-12, atol=1e-12)


def test_texts_of_like_length_share_a_batch_and_no_batch_is_larger(model, tiny_processor, monkeypatch):
    shapes, original = [], model.backbone_text_features

    def counted(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return original(**inputs)

    monkeypatch.setattr(model, "backbone_text_features", counted)
    encode_texts(model, tiny_processor, TEXTS, batch_size=3)
    assert shapes == [(3, 3), (3, 4), (2, 10)]  # with the end-of-text token; texts of 2, 2, 3 | 3, 3, 4 | 4, 10


def test_a_text_is_tokenised_once(model, tiny_processor, monkeypatch):
    seen, original = [], PreTrainedTokenizerFast.__call__

    def counted(self, text, **options):
        seen.extend(text)
        return original(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    monkeypatch.setattr(tokenization, "TEXTS_PER_CALL", 3)
    encode_texts(model, tiny_processor, TEXTS, batch_size=2)
    assert seen == TEXTS


def test_texts_beyond_the_context_are_refused_or_cut(model, tiny_processor):
    texts = ["red", LONG, AS_CUT]
    with pytest.raises(ValueError, match=r"text '0 1 2 .*' *\.\.\. has 19 tokens, but the context .* is 16: shorten"):
        encode_texts(model, tiny_processor, texts)
    eta = encode_texts(model, tiny_processor, texts, too_long="truncate")
    torch.testing.assert_close(eta[1], eta[2], rtol=1e-5, atol=1e-6)  # the last token is kept
    torch.testing.assert_close(eta, alone(model, tiny_processor, texts), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="Unknown too_long 'cut': choose one of raise, truncate"):
        encode_texts(model, tiny_processor, texts, too_long="cut")
    tokenized = tokenize_texts(tiny_processor, texts)
    assert tokenized.lengths.tolist() == [2, 19, 16]
    assert tokenized.too_long(16).tolist() == [False, True, False]
    assert not tokenized.too_long(None).any()


def test_what_says_nothing_and_what_is_no_text_is_refused(model, tiny_processor):
    for texts in ([], ()):
        with pytest.raises(ValueError, match="Text 0 is empty: write something"):
            encode_texts(model, tiny_processor, texts)
    for text in ("", " \n\t"):
        with pytest.raises(ValueError, match="Text 2 is empty: write something"):
            encode_texts(model, tiny_processor, ["red", "picture", text])
    for texts in ([None], [["red"]], [3]):
        with pytest.raises(TypeError, match="Text 0 is of type .*pass a string"):
            encode_texts(model, tiny_processor, texts)
    with pytest.raises(ValueError, match="batch_size is 0, but must be at least 1"):
        encode_texts(model, tiny_processor, ["red"], batch_size=0)


def test_the_concentration_is_the_norm(model, tiny_processor):
    eta = encode_texts(model, tiny_processor, [*TEXTS, LONG], too_long="truncate")
    concentration = text_concentration(model, tiny_processor, [*TEXTS, LONG], batch_size=2)
    torch.testing.assert_close(concentration, eta.norm(dim=-1), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="19 tokens"):
        text_concentration(model, tiny_processor, [LONG], too_long="raise")
