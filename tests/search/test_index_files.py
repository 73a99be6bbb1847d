"""Indexes from stores, their growth, their files, and what is refused when they are read."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.support.bundles import seal_again


pytest.importorskip("faiss")

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel  # noqa: E402
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.search.image_index import ImageIndex
from modeling_asymvlm.search.text_index import TextIndex
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.texts.encoding import encode_texts


def make_model(seed: int = 0, distribution: str = "power_spherical") -> AsymVLMModel:
    torch.manual_seed(seed)
    config = AsymVLMConfig(projection_dim=16, hidden_size=32, num_hidden_layers=1, distribution=distribution)
    return AsymVLMModel(config).eval()


def make_split(seed: int = 0, num_images: int = 40) -> EmbeddingSplit:
    generator = torch.Generator().manual_seed(seed)
    return EmbeddingSplit(
        image_ids=[f"image-{seed}-{number}" for number in range(num_images)],
        image_features=torch.randn(num_images, 16, generator=generator),
        captions=[f"caption {seed} {number}" for number in range(2 * num_images)],
        text_features=torch.randn(2 * num_images, 16, generator=generator),
        text_image_index=torch.arange(num_images).repeat_interleave(2),
    )


def same_results(first, second):
    assert first.labels == second.labels
    for name in ("rows", "scores", "log_posterior", "uncertainty"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def queries_for(index_class, model: AsymVLMModel, split: EmbeddingSplit) -> torch.Tensor:
    with torch.no_grad():
        output = model(text_features=split.text_features[:7], image_features=split.image_features[:7])
    return output.image_embeds if index_class is TextIndex else output.text_embeds


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_an_index_of_a_split_ranks_as_the_logits_of_the_model(distribution):
    model, split = make_model(distribution=distribution), make_split()
    with torch.no_grad():
        output = model(text_features=split.text_features[:], image_features=split.image_features[:])
    for index_class, logits in ((TextIndex, output.logits_per_image), (ImageIndex, output.logits_per_text)):
        queries = output.image_embeds if index_class is TextIndex else output.text_embeds
        index = index_class.from_split(model, split, batch_size=7)
        found = index.search(queries, len(index))
        by_row = np.empty_like(found.scores)
        np.put_along_axis(by_row, found.rows, found.scores, axis=1)
        np.testing.assert_allclose(model.logit_scale.item() * by_row, logits, atol=1e-5)
        np.put_along_axis(by_row, found.rows, found.posterior, axis=1)
        np.testing.assert_allclose(by_row, logits.softmax(dim=1), rtol=1e-4)
    assert found.labels[0][0] == split.image_ids[found.rows[0, 0]]


@pytest.mark.parametrize("index_class", [TextIndex, ImageIndex])
@pytest.mark.parametrize("memory_map", [False, True])
def test_a_saved_index_gives_the_same_results(index_class, memory_map, tmp_path):
    model, split = make_model(), make_split()
    index = index_class.from_split(model, split)
    index.save(tmp_path / "index")
    loaded = index_class.load(tmp_path / "index", model=model, splits=[split], memory_map=memory_map)
    queries = queries_for(index_class, model, split)
    for method in ("bound", "scan"):
        same_results(index.search(queries, 5, method=method), loaded.search(queries, 5, method=method))
    names = {"index.json", "vectors.faiss", "labels.arrow"}
    of_texts = {"parameters.safetensors"} if index_class is TextIndex else set()
    assert {file.name for file in (tmp_path / "index").iterdir()} == names | of_texts
    loaded.save(tmp_path / "index")  # in place of the files that it may have mapped
    same_results(index.search(queries, 5), index_class.load(tmp_path / "index").search(queries, 5))


@pytest.mark.parametrize("index_class", [TextIndex, ImageIndex])
def test_an_index_that_grew_is_the_index_of_everything(index_class, tmp_path):
    model, first, second = make_model(), make_split(1), make_split(2, num_images=9)
    whole = index_class(16, distribution="power_spherical", logit_scale=model.logit_scale.item())
    for split in (first, second):
        with torch.no_grad():
            output = model(text_features=split.text_features[:], image_features=split.image_features[:])
        embeddings = output.text_embeds if index_class is TextIndex else output.image_embeds
        whole.add(embeddings, split.captions if index_class is TextIndex else split.image_ids)
    index_class.from_split(model, first).save(tmp_path / "index")
    grown = index_class.load(tmp_path / "index", model=model)
    grown.add_split(model, second)
    queries = queries_for(index_class, model, second)
    same_results(whole.search(queries, 20), grown.search(queries, 20))
    grown.save(tmp_path / "index")
    index_class.load(tmp_path / "index", splits=[first, second])
    with pytest.raises(ValueError, match="the store has changed since, or the splits differ"):
        index_class.load(tmp_path / "index", splits=[second, first])


def test_a_growth_that_fails_leaves_the_index_as_it_was():
    model, split, more = make_model(), make_split(1), make_split(2)
    index = TextIndex.from_split(model, split)
    before = index.search(split.image_features[:3], 10)
    more.text_features[50] = float("nan")
    with pytest.raises(ValueError, match="text_embeds are NaN"):
        index.add_split(model, more, batch_size=16)
    assert len(index) == 80 and len(index.split_fingerprints) == 1
    same_results(before, index.search(split.image_features[:3], 10))


def test_another_model_and_a_changed_store_are_told(tmp_path):
    model, split = make_model(), make_split()
    store = EmbeddingStore.write(tmp_path / "store", {"test": split}, {})
    TextIndex.from_split(model, store.split("test")).save(tmp_path / "index")
    TextIndex.load(tmp_path / "index", model=model, splits=[store.split("test")])
    with pytest.raises(ValueError, match="built by another model"):
        TextIndex.load(tmp_path / "index", model=make_model(seed=1))
    with torch.no_grad():
        model.text_head.logit_scale += 1
    with pytest.raises(ValueError, match="built by another model"):
        TextIndex.load(tmp_path / "index").add_split(model, split)
    split.text_features[3, 2] += 1
    store = EmbeddingStore.write(tmp_path / "store", {"test": split}, {})
    with pytest.raises(ValueError, match="the store has changed since"):
        TextIndex.load(tmp_path / "index", splits=[store.split("test")])
    from_arrays = TextIndex(16, distribution="vmf")
    from_arrays.add(torch.ones(1, 16))
    with pytest.raises(ValueError, match="no model but from arrays"):
        from_arrays.add_split(model, split)


def saved(tmp_path):
    TextIndex.from_split(make_model(), make_split()).save(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize("name", ["index.json", "vectors.faiss", "labels.arrow", "parameters.safetensors"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_damaged_and_missing_files_are_told(name, memory_map, tmp_path):
    file = saved(tmp_path) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        TextIndex.load(tmp_path / "index", memory_map=memory_map)
    file.unlink()
    with pytest.raises(FileNotFoundError if name == "index.json" else ValueError, match="no index at|incomplete"):
        TextIndex.load(tmp_path / "index", memory_map=memory_map)


def test_files_that_do_not_belong_together_are_told(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(ValueError, match="holds a text index of format 1, but one of images"):
        ImageIndex.load(folder)
    seal_again(folder / "index.json", num_rows=81)
    with pytest.raises(ValueError, match=r"\[80, 81\] rows"):
        TextIndex.load(folder)
    seal_again(folder / "index.json", {"kind": "text"})
    with pytest.raises(ValueError, match="damaged .*num_rows"):
        TextIndex.load(folder)
    seal_again(saved(tmp_path) / "index.json", distribution="vmf")
    with pytest.raises(ValueError, match="18 wide, not 17"):
        TextIndex.load(folder)


def test_a_mapped_index_refuses_to_grow(tmp_path):
    mapped = TextIndex.load(saved(tmp_path), memory_map=True)
    with pytest.raises(ValueError, match="memory_map=False"):
        mapped.add(torch.ones(1, 16))
    with pytest.raises(ValueError, match="memory_map=False"):
        mapped.add_split(make_model(), make_split(3))
    assert len(mapped) == 80
    with pytest.raises(ValueError, match="read-only"):
        mapped.vectors[0, 0] = 1


def test_text_queries_are_words_within_the_context(tiny_clip, tiny_processor, tmp_path):
    tiny_clip.save_pretrained(tmp_path / "clip")
    model = AsymVLMModel.from_vlm_pretrained(tmp_path / "clip", distribution="vmf").eval()
    eta = encode_texts(model, tiny_processor, ["red 3", "picture 3 4 5"])
    alone = encode_texts(model, tiny_processor, "red 3")
    np.testing.assert_allclose(eta[:1], alone, rtol=1e-5, atol=1e-6)
    index = ImageIndex(24, distribution="vmf")
    index.add(torch.randn(30, 24, generator=torch.Generator().manual_seed(0)))
    scores = pair_scores(eta, torch.tensor(index.vectors), distribution="vmf")
    np.testing.assert_allclose(index.search(eta, 1).scores[:, 0], scores.max(dim=1).values, rtol=1e-5)
    for texts in ([], [""], "  "):
        with pytest.raises(ValueError, match="Text 0 is empty"):
            encode_texts(model, tiny_processor, texts)
    with pytest.raises(ValueError, match="tokens, but the context of the backbone is 16"):
        encode_texts(model, tiny_processor, ["red", "red 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17"])


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("name", ["vectors.faiss", "labels.arrow", "parameters.safetensors"])
def test_any_flipped_bit_of_any_file_is_told(name, memory_map, tmp_path):
    file = saved(tmp_path) / name
    content, generator = file.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] ^= 1 << generator.integers(8)
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"index' is incomplete or damaged: {name} is not as it was written.*Bui"
        ):
            TextIndex.load(tmp_path / "index", memory_map=memory_map)


@pytest.mark.parametrize("name", ["vectors.faiss", "labels.arrow", "parameters.safetensors"])
def test_files_of_another_index_of_the_same_size_are_told(name, tmp_path):
    folder = saved(tmp_path)
    TextIndex.from_split(make_model(), make_split(seed=9)).save(tmp_path / "other")
    (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=f"incomplete or damaged: {name} is"):
        TextIndex.load(folder)


def test_a_reader_among_savers_gets_labels_and_vectors_of_one_index(tmp_path):
    indexes = []
    for number in range(2):
        index = TextIndex(3, distribution="vmf")
        index.add(torch.full((20, 3), 1.0 + number), [str(number)] * 20)
        indexes.append(index)
    indexes[0].save(tmp_path / "index")
    with ThreadPoolExecutor(2) as threads:
        savers = [
            threads.submit(lambda one: [one.save(tmp_path / "index") for _ in range(15)], one) for one in indexes
        ]
        while not all(saver.done() for saver in savers):
            loaded = TextIndex.load(tmp_path / "index")
            found = loaded.search(torch.eye(3)[:1], 20)
            (label,) = set(found.labels[0])
            np.testing.assert_array_equal(found.scores, indexes[int(label)].search(torch.eye(3)[:1], 20).scores)
    assert [len(saver.result()) for saver in savers] == [15, 15]
