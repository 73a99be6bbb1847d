"""Features of images and captions: right, in order, computed once; broken images named, or skipped when asked."""

import threading
import time

import pytest
import torch

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.pairs.sources import CaptionedImage
from modeling_asymvlm.store import embedding
from modeling_asymvlm.store.builder import cached_features
from modeling_asymvlm.store.embedding import embed, features_fingerprint
from tests.support.picture_source import PictureSource, png
from tests.support.tiny_models import make_tiny_clip


@pytest.fixture
def model(tiny_clip) -> AsymVLMModel:
    return AsymVLMModel.from_vlm_pretrained(tiny_clip)


def embed_all(model, processor, images, **keywords):
    blocks, broken = zip(*embed(model, processor, images, **keywords), strict=True)
    return blocks, [name for names in broken for name in names]


def test_embedding_gives_the_backbones_features_in_order(model, tiny_processor):
    images = list(PictureSource(2, 4).read(0)) + list(PictureSource(2, 4).read(1))
    blocks, broken = embed_all(model, tiny_processor, images, batch_size=3)
    assert broken == [] and [len(block.image_ids) for block in blocks] == [3, 3, 2]
    assert [name for block in blocks for name in block.image_ids] == [image.image_id for image in images]
    assert [text for block in blocks for text in block.captions] == [
        text for image in images for text in image.captions
    ]
    assert [block.text_image_index.tolist() for block in blocks] == [[0, 0, 1, 1, 2, 2]] * 2 + [[0, 0, 1, 1]]
    assert blocks[1].columns["level"].tolist() == [0, 1] * 3
    image_features = torch.cat([block.image_features for block in blocks])
    text_features = torch.cat([block.text_features for block in blocks])
    texts = [text for image in images for text in image.captions]
    with torch.no_grad():
        for row, image in enumerate(images):
            pixels = tiny_processor(images=image.open(), return_tensors="pt")["pixel_values"]
            expected = model.vlm.get_image_features(pixels).pooler_output[0]
            torch.testing.assert_close(image_features[row], expected, rtol=0, atol=1e-5)
        for row, text in enumerate(texts):  # of two lengths, taking turns
            tokens = tiny_processor(text=text, return_tensors="pt")
            expected = model.vlm.get_text_features(tokens["input_ids"]).pooler_output[0]
            torch.testing.assert_close(text_features[row], expected, rtol=0, atol=1e-5)


def test_images_are_decoded_while_the_backbone_works(model, tiny_processor, monkeypatch):
    opened, at_work = [], []

    class Watched(CaptionedImage):
        def open(self):
            opened.append(self.image_id)
            assert threading.current_thread() is not threading.main_thread()
            return super().open()

    def features(**inputs):
        deadline = time.monotonic() + 10
        while len(opened) < min(8, 4 * (len(at_work) + 2)) and time.monotonic() < deadline:
            time.sleep(0.001)
        at_work.append(len(opened))
        return type(model).backbone_image_features(model, **inputs)

    monkeypatch.setattr(model, "backbone_image_features", features)
    images = [Watched(f"image-{number}", png(number), ["red"]) for number in range(8)]
    embed_all(model, tiny_processor, images, batch_size=4)
    assert at_work == [8, 8]  # the second batch was decoded during the first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_come_in_the_dtype_asked_for(model, tiny_processor, dtype):
    images = list(PictureSource(1).read(0))
    (whole,), _ = embed_all(model, tiny_processor, images, batch_size=8)
    (rounded,), _ = embed_all(model, tiny_processor, images, batch_size=8, dtype=dtype)
    assert torch.equal(rounded.image_features, whole.image_features.to(dtype))
    assert torch.equal(rounded.text_features, whole.text_features.to(dtype))


def test_features_that_the_dtype_cannot_hold_are_an_error(model, tiny_processor):
    images = list(PictureSource(1).read(0))
    model.vlm.visual_projection.weight.data.mul_(1e7)
    with pytest.raises(ValueError, match="image features that are too large for torch.float16. Try another dtype"):
        embed_all(model, tiny_processor, images, batch_size=3, dtype=torch.float16)
    torch.nn.init.constant_(model.vlm.visual_projection.weight, float("inf"))
    with pytest.raises(ValueError, match="image features that are NaN or infinite"):
        embed_all(model, tiny_processor, images, batch_size=3)


def test_broken_images_are_named_or_skipped_and_counted_when_asked(model, tiny_processor, tmp_path):
    images = list(PictureSource(1, 8, broken=(2, 5)).read(0))
    images[6] = CaptionedImage("image-6", tmp_path / "6.png", ["red 6"], {"level": [0]})
    with pytest.raises(ValueError, match="Image 'image-2' cannot be read: .* pass skip_broken_images=True"):
        embed_all(model, tiny_processor, images, batch_size=3)
    blocks, broken = embed_all(model, tiny_processor, images, batch_size=3, skip_broken_images=True)
    assert broken == ["'image-2'", "'image-5'", repr(str(tmp_path / "6.png"))]
    assert [name for block in blocks for name in block.image_ids] == [f"image-{number}" for number in (0, 1, 3, 4, 7)]
    assert [text for block in blocks for text in block.captions][-2:] == ["red 7", "picture red 7"]


@pytest.mark.parametrize("captions", [[], ["red", "  "]])
def test_a_caption_without_text_is_named(model, tiny_processor, captions):
    with pytest.raises(ValueError, match="Image 'a' has an empty caption, or none"):
        embed_all(model, tiny_processor, [CaptionedImage("a", png(1), captions)], batch_size=3)


def test_the_fingerprint_follows_the_backbone_the_processor_the_data_and_the_dtype(model, tiny_processor):
    sources = {"train": PictureSource(3)}
    first = features_fingerprint(model, tiny_processor, sources, dtype=torch.float32)

    def changed(model=model, dtype=torch.float32) -> list[str]:
        now = features_fingerprint(model, tiny_processor, sources, dtype=dtype)
        return [name for name in first if now[name] != first[name]]

    assert changed() == []
    tiny_processor(text=["red", "red 1"], padding=True)
    torch.nn.init.ones_(model.text_head.output_layer.weight)
    assert changed() == []
    assert changed(dtype=torch.float16) == ["dtype"]
    torch.nn.init.zeros_(model.vlm.logit_scale)
    assert changed() == ["backbone"]
    other = AsymVLMModel.from_vlm_pretrained(make_tiny_clip())
    tiny_processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert changed(other) == ["processor"]
    sources["train"].versions[2] = "second"
    assert changed(other) == ["processor", "data"]


def test_large_weights_are_fingerprinted_in_pieces(model, tiny_processor, monkeypatch):
    first = features_fingerprint(model, tiny_processor, {}, dtype=torch.float32)
    monkeypatch.setattr(embedding, "BYTES_AT_A_TIME", 1000)
    assert features_fingerprint(model, tiny_processor, {}, dtype=torch.float32) == first


def test_cached_features_are_used_again_only_where_nothing_has_changed(model, tiny_processor, tmp_path, monkeypatch):
    sources = {"train": PictureSource(3)}
    calls = []

    def counted(**inputs):
        calls.append(len(inputs["pixel_values"]))
        return type(model).backbone_image_features(model, **inputs)

    monkeypatch.setattr(model, "backbone_image_features", counted)
    store, broken = cached_features(tmp_path / "store", model, tiny_processor, sources, batch_size=3)
    assert calls == [3, 2] * 3 and broken == []
    assert store.backbone_fingerprint == model.config.backbone_fingerprint
    again, _ = cached_features(tmp_path / "store", model, tiny_processor, sources, batch_size=5)
    assert len(calls) == 6
    assert torch.equal(again.split("train").text_features[:], store.split("train").text_features[:])
    sources["train"].versions[1] = "second"
    cached_features(tmp_path / "store", model, tiny_processor, sources, batch_size=5)
    assert calls[6:] == [5]
    torch.nn.init.zeros_(model.vlm.text_projection.weight)
    changed, _ = cached_features(tmp_path / "store", model, tiny_processor, sources, batch_size=5)
    assert calls[7:] == [5, 5, 5]
    assert changed.split("train").text_features[:].abs().max() == 0


def test_features_are_stored_as_the_backbone_has_them_or_as_asked(tiny_clip, tiny_processor, tmp_path):
    half = AsymVLMModel.from_vlm_pretrained(tiny_clip.to(torch.bfloat16))
    for number, (dtype, expected) in enumerate([(None, torch.bfloat16), (torch.float32, torch.float32)]):
        folder = tmp_path / f"store-{number}"
        store, _ = cached_features(
            folder, half, tiny_processor, {"train": PictureSource(1)}, batch_size=8, dtype=dtype
        )
        assert store.split("train").text_features.dtype == expected


def test_a_cache_with_skipped_images_serves_only_who_allows_them(model, tiny_processor, tmp_path):
    sources = {"train": PictureSource(2, broken=(4,))}
    for _ in range(2):
        store, broken = cached_features(
            tmp_path / "store", model, tiny_processor, sources, batch_size=3, skip_broken_images=True
        )
        assert broken == ["'image-4'"] and len(store.split("train").image_ids) == 9
    with pytest.raises(ValueError, match="image-4"):
        cached_features(tmp_path / "store", model, tiny_processor, sources, batch_size=3)


def test_skipping_every_image_is_an_error(model, tiny_processor, tmp_path):
    sources = {"train": PictureSource(2, 2, broken=(0, 1, 2, 3))}
    with pytest.raises(ValueError, match="Only 0 pairs of split 'train' are left after skipping 4 broken images"):
        cached_features(tmp_path / "store", model, tiny_processor, sources, batch_size=4, skip_broken_images=True)
