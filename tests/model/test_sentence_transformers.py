"""A checkpoint as sentence-transformers sees it: texts as natural parameters, images as unit vectors, no adapter."""

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer, util
from transformers import SiglipImageProcessor, SiglipProcessor

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.pairs.sources import CaptionedImage
from modeling_asymvlm.utils.pictures import open_picture
from tests.support.training import learned


TEXTS = ["red 1", "picture 2 3 4", "5", "red picture 7 8 9 10 11"]


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 32), (25 * number, 255 - 30 * number, 7 * number)) for number in range(6)]


@pytest.fixture
def siglip_processor(tiny_processor) -> SiglipProcessor:
    return SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tiny_processor.tokenizer)


@pytest.fixture(params=["tiny_clip", "tiny_siglip"])
def model_and_processor(request, tiny_processor, siglip_processor):
    torch.manual_seed(3)
    vlm = request.getfixturevalue(request.param)
    model = AsymVLMModel.from_vlm_pretrained(vlm, text_pad_token_id=1, **learned(hidden_size=48, distribution="vmf"))
    return model, tiny_processor if request.param == "tiny_clip" else siglip_processor


@pytest.fixture
def encoder(model_and_processor, tmp_path) -> SentenceTransformer:
    for part in model_and_processor:
        part.save_pretrained(tmp_path / "checkpoint")
    return SentenceTransformer(str(tmp_path / "checkpoint"), device="cpu")


def test_texts_are_encoded_as_natural_parameters(model_and_processor, encoder):
    model, processor = model_and_processor
    actual = encoder.encode(TEXTS, convert_to_tensor=True)
    inputs = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model.get_text_features(**inputs).pooler_output
        distribution = model.get_text_distribution(**inputs)
    assert encoder.get_embedding_dimension() == model.config.projection_dim == actual.shape[1]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual.norm(dim=-1), distribution.concentration, rtol=1e-6, atol=1e-6)
    direction = torch.nn.functional.normalize(actual, dim=-1)
    torch.testing.assert_close(direction, distribution.loc, rtol=1e-6, atol=1e-6)


def test_a_text_has_one_embedding_alone_and_padded_in_a_batch(encoder):
    together = encoder.encode(TEXTS, convert_to_tensor=True)
    for text, expected in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(encoder.encode(text, convert_to_tensor=True), expected, rtol=1e-6, atol=1e-6)


def test_images_are_encoded_as_unit_vectors(model_and_processor, encoder, pictures):
    model, processor = model_and_processor
    actual = encoder.encode(pictures, convert_to_tensor=True)
    with torch.no_grad():
        expected = model.get_image_features(**processor.image_processor(pictures, return_tensors="pt")).pooler_output
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual.norm(dim=-1), torch.ones(len(pictures)))


def test_the_cosine_ranks_images_for_a_text_as_the_model_does(model_and_processor, encoder, pictures):
    model, processor = model_and_processor
    texts, images = (encoder.encode(inputs, convert_to_tensor=True) for inputs in (TEXTS, pictures))
    assert encoder.similarity_fn_name == "cosine"
    inputs = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **processor.image_processor(pictures, return_tensors="pt"),
        ).logits_per_text
    assert torch.equal(encoder.similarity(texts, images).argsort(dim=1), logits.argsort(dim=1))
    found = util.semantic_search(texts, images, top_k=len(pictures))
    assert [[hit["corpus_id"] for hit in hits] for hits in found] == logits.argsort(dim=1, descending=True).tolist()


def test_a_picture_is_encoded_as_it_is_read_for_training(model_and_processor, encoder, tmp_path):
    model, processor = model_and_processor
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.linspace(0, 65535, 40 * 32).astype(np.uint16).reshape(40, 32)
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    trained_on = CaptionedImage("x", tmp_path / "x.png", ["a"]).open()
    expected = model.get_image_features(**processor.image_processor([trained_on], return_tensors="pt")).pooler_output
    found = encoder.encode([open_picture(tmp_path / "x.png")], convert_to_tensor=True)
    torch.testing.assert_close(found, expected)
