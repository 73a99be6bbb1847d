"""Features of pairs: right, in order, cached with a fingerprint; broken images named or skipped when asked."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_asymvlm import AsymVLMModel, embedding
from modeling_asymvlm.embedding import cached_features, embed_pairs, features_fingerprint
from modeling_asymvlm.readers.files import Opening, open_image_folder, open_table


def read_folder(folder):
    return open_image_folder(folder, Opening(str(folder)))["train"]


def read_rows(folder, rows):
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return open_table({"train": [file]}, "json", Opening(str(file)))["train"]


def test_embedding_gives_the_backbones_features_in_order(picture_folder, tiny_clip, tiny_processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    pairs = read_folder(picture_folder)
    split, broken = embed_pairs(model, tiny_processor, pairs, batch_size=3)
    assert broken == []
    images = list(pairs.read(0))
    assert split.captions == [caption for image in images for caption in image.captions]
    assert split.text_image_index.tolist() == np.repeat(range(8), 2).tolist()
    with torch.no_grad():
        for row in (0, 7):
            pixels = tiny_processor(images=images[row].open(), return_tensors="pt")["pixel_values"]
            expected = tiny_clip.get_image_features(pixels).pooler_output[0]
            torch.testing.assert_close(split.image_features[row], expected, rtol=0, atol=1e-5)
        tokens = tiny_processor(text=split.captions[5], return_tensors="pt")
        expected = tiny_clip.get_text_features(tokens["input_ids"]).pooler_output[0]
    torch.testing.assert_close(split.text_features[5], expected, rtol=0, atol=1e-5)


def test_broken_images_are_named_or_skipped_and_counted_when_asked(
    picture_folder, pair_rows, tiny_clip, tiny_processor
):
    (picture_folder / "images" / "2.png").write_bytes((picture_folder / "images" / "2.png").read_bytes()[:40])
    (picture_folder / "images" / "5.png").write_text("no picture")
    (picture_folder / "images" / "6.png").unlink()
    pairs = read_rows(picture_folder, pair_rows)
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    with pytest.raises(ValueError, match="Image 'images/2.png' cannot be read: .* pass --skip_broken_images"):
        embed_pairs(model, tiny_processor, pairs, batch_size=3)
    split, broken = embed_pairs(model, tiny_processor, pairs, batch_size=3, skip_broken_images=True)
    assert broken == ["'images/2.png'", "'images/5.png'", "'images/6.png'"]
    assert len(split.image_ids) == 5 and len(split.captions) == 10
    whole = [number for number in range(8) if number not in (2, 5, 6)]
    assert split.captions == [f"{word} {number}" for number in whole for word in ("red", "picture")]
    assert split.text_image_index.tolist() == np.repeat(range(5), 2).tolist()


def test_skipping_every_image_is_an_error(picture_folder, pair_rows, tiny_clip, tiny_processor):
    for file in (picture_folder / "images").iterdir():
        file.write_text("no picture")
    pairs = read_rows(picture_folder, pair_rows)
    with pytest.raises(ValueError, match="Only 0 pairs are left after skipping 8 broken images"):
        embed_pairs(
            AsymVLMModel.from_vlm_pretrained(tiny_clip), tiny_processor, pairs, batch_size=4, skip_broken_images=True
        )


def test_the_fingerprint_follows_the_backbone_the_processor_and_the_data(picture_folder, tiny_clip, tiny_processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    pairs = {"train": read_folder(picture_folder)}
    first = features_fingerprint(model, tiny_processor, pairs)
    assert features_fingerprint(model, tiny_processor, pairs) == first
    torch.nn.init.ones_(model.text_head.output_layer.weight)
    assert features_fingerprint(model, tiny_processor, pairs) == first

    def changed(fingerprint) -> list[str]:
        return [name for name in first if fingerprint[name] != first[name]]

    torch.nn.init.zeros_(model.vlm.logit_scale)
    assert changed(features_fingerprint(model, tiny_processor, pairs)) == ["backbone"]
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    tiny_processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert changed(features_fingerprint(model, tiny_processor, pairs)) == ["processor"]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(picture_folder / "images" / "3.png")
    assert "data" in changed(features_fingerprint(model, tiny_processor, {"train": read_folder(picture_folder)}))


def test_cached_features_are_used_again_only_where_nothing_has_changed(
    picture_folder, tiny_clip, tiny_processor, tmp_path, monkeypatch
):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    pairs = {"train": read_folder(picture_folder)}
    calls = []

    def counted(*arguments, **keywords):
        calls.append(keywords["description"])
        return embed_pairs(*arguments, **keywords)

    monkeypatch.setattr(embedding, "embed_pairs", counted)
    store, _ = cached_features(tmp_path / "store", model, tiny_processor, pairs, batch_size=3)
    again, _ = cached_features(tmp_path / "store", model, tiny_processor, pairs, batch_size=5)
    assert calls == ["Features of train"]
    assert torch.equal(again.split("train").text_features, store.split("train").text_features)
    torch.nn.init.zeros_(model.vlm.text_projection.weight)
    changed, _ = cached_features(tmp_path / "store", model, tiny_processor, pairs, batch_size=3)
    assert len(calls) == 2
    assert changed.split("train").text_features.abs().max() == 0


def test_a_cache_with_skipped_images_serves_only_who_allows_them(
    picture_folder, pair_rows, tiny_clip, tiny_processor, tmp_path
):
    (picture_folder / "images" / "5.png").write_text("no picture")
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    pairs = {"train": read_rows(picture_folder, pair_rows)}
    for _ in range(2):
        _, broken = cached_features(
            tmp_path / "store", model, tiny_processor, pairs, batch_size=3, skip_broken_images=True
        )
        assert broken == ["'images/5.png'"]
    with pytest.raises(ValueError, match="images/5.png"):
        cached_features(tmp_path / "store", model, tiny_processor, pairs, batch_size=3)


def test_features_that_are_not_finite_are_an_error(picture_folder, tiny_clip, tiny_processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip)
    torch.nn.init.constant_(model.vlm.visual_projection.weight, float("inf"))
    with pytest.raises(ValueError, match="image features that are NaN or infinite"):
        embed_pairs(model, tiny_processor, read_folder(picture_folder), batch_size=3)
