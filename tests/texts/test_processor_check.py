"""Processors that belong to a backbone pass; those of another one are refused when they are loaded."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.texts.processor_check import check_processor
from tests.support.tiny_backbones import FAMILIES, tiny_backbone
from tests.support.tiny_models import make_tiny_processor


WORDS = {"<unk>": 0, "<pad>": 1, "red": 2, "picture": 3, "green": 4, "dog": 5, "<start>": 97, "<end>": 98}


def tokenizer(words: dict[str, int], template: str = "$A <end>") -> PreTrainedTokenizerFast:
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    special = [(name, words[name]) for name in ("<start>", "<end>") if name in template]
    if special:
        made.post_processor = TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def images(size: int = 32, **options) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size, **options)


@pytest.fixture
def model(tiny_clip, tmp_path) -> AsymVLMModel:
    tiny_clip.save_pretrained(tmp_path / "backbone")
    return AsymVLMModel.from_vlm_pretrained(tmp_path / "backbone").eval()


def test_a_processor_that_fits_passes_and_so_does_its_tokenizer_alone(model):
    check_processor(model, make_tiny_processor())
    check_processor(model, make_tiny_processor().tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_towers_of_all_families_pass(family, tmp_path):
    tiny_backbone(family).save_pretrained(tmp_path / "backbone")
    tokenizer(WORDS).save_pretrained(tmp_path / "backbone")
    check_processor(AsymVLMModel.from_vlm_pretrained(tmp_path / "backbone").eval(), tokenizer(WORDS))


@pytest.mark.parametrize(
    ("words", "template", "message"),
    [
        ({**WORDS, "blue": 99}, "$A <end>", "token ids up to 99, but the text tower knows 99 tokens"),
        ({**WORDS, "<end>": 49407}, "$A <end>", "token ids up to 49407, but the text tower knows 99"),
        ({**WORDS, "<end>": 96}, "<start> $A <end>", "different texts the same features, such as .*another end"),
        (WORDS, "<start> $A", "different texts the same features"),
    ],
)
def test_a_tokenizer_of_another_backbone_is_refused(words, template, message, model):
    for processor in (tokenizer(words, template), CLIPProcessor(images(), tokenizer(words, template))):
        with pytest.raises(
            ValueError, match=f"The processor does not fit the backbone: .*{message}.*Load the processor"
        ):
            check_processor(model, processor)


def test_a_tokenizer_that_knows_none_of_its_words_is_refused(model):
    blind = tokenizer({**WORDS, "RED": 6, "GREEN": 7, "DOG": 8})
    state = blind.backend_tokenizer
    state.pre_tokenizer = Whitespace()
    state.model = WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 98, "a a": 2, "b b": 3, "c c": 4}, unk_token="<unk>")
    decoded = {2: "one", 3: "two", 4: "three"}
    blind.decode = lambda ids: decoded.get(ids[0], "")
    with pytest.raises(ValueError, match="its tokenizer gives 'one two' and 'one three' the same tokens"):
        check_processor(model, blind)


@pytest.mark.parametrize(
    ("image_processor", "message"),
    [
        (images(48), r"it makes pixel_values of shape \(3, 3, 48, 48\), which the image tower does not take"),
        (images(16), r"pixel_values of shape \(3, 3, 16, 16\), which the image tower does not take"),
        (images(image_mean=[0] * 3, image_std=[float("inf")] * 3), "different pictures the same features"),
        (images(image_std=[0.0] * 3), "features that are NaN or infinite for pictures|does not take"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_an_image_processor_of_another_backbone_is_refused(image_processor, message, model):
    with pytest.raises(ValueError, match=message):
        check_processor(model, CLIPProcessor(image_processor, make_tiny_processor().tokenizer))


def test_what_is_checked_changes_neither_model_nor_processor(model):
    processor, picture = make_tiny_processor(), Image.new("RGB", (40, 30), "red")

    def outputs() -> list[torch.Tensor]:
        inputs = processor(text=["red 1", "2"], images=picture, padding=True, return_tensors="pt")
        return [*inputs.values(), model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output]

    before = outputs()
    check_processor(model, processor)
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(), strict=True))
    assert not model.training
