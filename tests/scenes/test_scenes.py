"""The scenes example: its data set, its oracle and the tiny CLIP that ships beside it."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from datasets import load_dataset

from modeling_asymvlm.scenes import generate, oracle, scenes
from modeling_asymvlm.scenes.places import BACKBONE


MODEL_DIR = BACKBONE


@pytest.fixture
def small_splits(monkeypatch):
    monkeypatch.setattr(generate, "SPLIT_SIZES", {"train": 60, "validation": 20, "test": 20})


@pytest.fixture(scope="module")
def model():
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(MODEL_DIR, local_files_only=True).eval()


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(MODEL_DIR, local_files_only=True)


# The world


def test_held_out_half_leaves_every_triple_of_values_in_training():
    combinations, held_out = scenes.all_scenes(), scenes.held_out_scenes()
    assert len(np.unique(combinations, axis=0)) == len(combinations) == 8 * 2 * 6 * 5 * 3
    assert held_out.sum() == len(combinations) // 2
    for size in (1, 2, 3):
        for group in itertools.combinations(range(5), size):
            possible = math.prod(scenes.NUM_VALUES[attribute] for attribute in group)
            for half in (combinations[held_out], combinations[~held_out]):
                assert len(np.unique(half[:, list(group)], axis=0)) == possible


def test_ambiguity_counts_the_scenes_that_fit():
    combinations = scenes.all_scenes()
    scene = combinations[777]
    for named in itertools.product([False, True], repeat=5):
        fitting = sum(
            all(not is_named or value == other for is_named, value, other in zip(named, scene, row, strict=True))
            for row in combinations.tolist()
        )
        assert scenes.ambiguity(np.array(named)) == pytest.approx(math.log(fitting), abs=1e-12)


def test_number_of_named_attributes_follows_its_distribution_and_subsets_are_uniform():
    named = scenes.draw_named(np.random.default_rng(0), 40_000)
    for count, probability in enumerate(scenes.NUM_NAMED_PROBABILITIES):
        share = (named.sum(axis=1) == count).mean()
        assert share == pytest.approx(probability, abs=4 * math.sqrt(probability / len(named)))
    three = named[named.sum(axis=1) == 3]
    assert np.abs(three.mean(axis=0) - 3 / 5).max() < 4 * math.sqrt(0.24 / len(three))


def test_captions_name_exactly_the_named_attributes():
    words = {
        (name, value): {phrase for phrase in options}
        for name, values in scenes.WORDS.items()
        for value, options in enumerate(values)
    }
    random = np.random.default_rng(1)
    for scene in scenes.all_scenes()[random.integers(1440, size=300)]:
        named = scenes.draw_named(random, 1)[0]
        caption = f" {scenes.write_caption(scene, named, random)} "
        found = {key for key, options in words.items() if any(f" {phrase} " in caption for phrase in options)}
        assert found == {
            (name, value)
            for name, value, is_named in zip(scenes.ATTRIBUTES, scene.tolist(), named, strict=True)
            if is_named
        }


def test_wording_does_not_depend_on_attributes_that_are_not_named():
    named = np.array([True, False, True, False, False])
    captions = {
        tuple(
            scenes.write_caption(np.array([3, size, 4, position, 2]), named, np.random.default_rng(seed))
            for seed in range(50)
        )
        for size in range(2)
        for position in range(5)
    }
    assert len(captions) == 1


def test_two_pictures_of_one_scene_differ_slightly():
    random = np.random.default_rng(2)
    first, second, other = (
        scenes.render(np.array(scene), random).astype(float)
        for scene in ((0, 1, 0, 2, 0), (0, 1, 0, 2, 0), (5, 1, 1, 0, 2))
    )
    assert first.shape == (32, 32, 3)
    assert 0 < np.abs(first - second).mean() < np.abs(first - other).mean() / 3


# The data set


def test_generated_splits_are_deterministic_and_disjoint_in_combinations(small_splits, tmp_path):
    first = generate.generate(tmp_path / "first", seed=3)
    second = generate.generate(tmp_path / "second", seed=3)
    other = generate.generate(tmp_path / "other", seed=4)
    for split in generate.SPLIT_SIZES:
        assert (first / f"{split}.parquet").read_bytes() == (second / f"{split}.parquet").read_bytes()
        assert (first / f"{split}.parquet").read_bytes() != (other / f"{split}.parquet").read_bytes()
    files = {split: str(first / f"{split}.parquet") for split in generate.SPLIT_SIZES}
    splits = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {split: len(dataset) for split, dataset in splits.items()} == generate.SPLIT_SIZES
    shown = {split: set(map(tuple, oracle.split_attributes(dataset)[0].tolist())) for split, dataset in splits.items()}
    assert not shown["test"] & (shown["train"] | shown["validation"])
    row = splits["test"][0]
    assert row["image"].size == (32, 32) and row["image"].mode == "RGB"
    assert row["num_attributes"] == len(row["named_attributes"].split())
    named = np.array([name in row["named_attributes"].split() for name in scenes.ATTRIBUTES])
    assert row["ambiguity"] == scenes.ambiguity(named)
    image_ids = [image_id for dataset in splits.values() for image_id in dataset["image_id"]]
    assert len(set(image_ids)) == len(image_ids)


def test_finished_folder_is_kept_and_an_outdated_one_replaced(small_splits, tmp_path):
    folder = generate.generate(tmp_path / "data")
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    generate.generate(folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    marker = folder / generate.MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "generator_sha256": "older"}))
    generate.generate(folder)
    assert generate.is_complete(folder, generate.fingerprint(seed=0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_interrupted_command_leaves_no_folder(small_splits, tmp_path, monkeypatch):
    def fail(split, size, seed):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(generate, "make_split", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        generate.generate(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_files_is_refused(small_splits, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="name a new or an empty folder"):
        generate.generate(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


# The oracle


def draw_tiny_world(random, world, count):
    shown = world[random.integers(len(world), size=count)]
    named = random.random((count, world.shape[1])) < 0.5
    fits = oracle.fit_matrix(shown, shown, named)
    return shown, named, fits, oracle.fit_matrix(world, shown, named).mean(axis=1)


def test_oracle_bound_agrees_with_simulated_retrieval():
    random = np.random.default_rng(5)
    world = np.array(list(itertools.product(range(3), range(2), range(2))))[:10]
    count, repeats = 12, 4000
    bounds, hits, expected = [], [], []
    for repeat in range(repeats):
        _, _, fits, share = draw_tiny_world(random, world, count)
        scores = oracle.oracle_scores(fits, share, seed=repeat)
        own = np.arange(count)
        hits.append([(scores.argmax(axis=0) == own).mean(), (scores.argmax(axis=1) == own).mean()])
        bounds.append(oracle.best_recall(fits, share))
        expected.append(oracle.expected_recall(scores, fits, share))
    assert np.allclose(expected, bounds, rtol=0, atol=1e-12)
    difference = np.array(hits) - np.array(bounds)
    standard_error = difference.std(axis=0) / math.sqrt(repeats)
    assert (np.abs(difference.mean(axis=0)) < 4 * standard_error).all()
    assert (standard_error < 0.005).all()


def test_oracle_is_the_posterior_of_exhaustive_enumeration():
    """Every draw of three pairs from a world of three scenes, weighted by its probability, in every gallery order."""
    world = np.array([[0, 0], [0, 1], [1, 0]])
    subsets = {(False, False): 0.3, (True, False): 0.2, (False, True): 0.1, (True, True): 0.4}
    pairs = [(tuple(scene), named, weight / 3) for scene in world.tolist() for named, weight in subsets.items()]

    def text(pair):
        return tuple(value if is_named else None for value, is_named in zip(pair[0], pair[1], strict=True))

    from_image: dict = {}
    from_text: dict = {}
    for draw in itertools.product(pairs, repeat=3):
        probability = math.prod(pair[2] for pair in draw)
        # The own item of query 0 stands at position `place` of the gallery; the two others follow in order.
        for place in range(3):
            order = [1, 2]
            order.insert(place, 0)
            texts = tuple(text(draw[index]) for index in order)
            pictures = tuple(draw[index][0] for index in order)
            from_image.setdefault((draw[0][0], texts), np.zeros(3))[place] += probability
            from_text.setdefault((text(draw[0]), pictures), np.zeros(3))[place] += probability
    for (picture, texts), weights in from_image.items():
        captioned = np.array([[value or 0 for value in words] for words in texts])
        named = np.array([[value is not None for value in words] for words in texts])
        fits = oracle.fit_matrix(np.array([picture]), captioned, named)
        share = oracle.fit_matrix(world, captioned, named).mean(axis=1)
        posterior = oracle.image_to_text_posterior(fits, share)[:, 0]
        np.testing.assert_allclose(posterior, weights / weights.sum(), rtol=0, atol=1e-12)
    for (words, pictures), weights in from_text.items():
        captioned = np.array([[value or 0 for value in words]])
        named = np.array([[value is not None for value in words]])
        posterior = oracle.text_to_image_posterior(oracle.fit_matrix(np.array(pictures), captioned, named))[0]
        np.testing.assert_allclose(posterior, weights / weights.sum(), rtol=0, atol=1e-12)


def test_no_scores_are_expected_to_beat_the_oracle():
    random = np.random.default_rng(6)
    world = scenes.all_scenes()[scenes.held_out_scenes()]
    _, _, fits, share = draw_tiny_world(random, world, 200)
    best = oracle.best_recall(fits, share)
    assert oracle.expected_recall(oracle.oracle_scores(fits, share), fits, share) == pytest.approx(best, abs=1e-12)
    for scores in (random.random((200, 200)), fits.T.astype(float), fits.T / np.sqrt(share)):
        recall = oracle.expected_recall(scores, fits, share)
        assert recall[0] <= best[0] + 1e-12 and recall[1] <= best[1] + 1e-12


# The tiny CLIP


def test_shipped_files_are_small_and_free_of_pickle():
    files = [file for file in MODEL_DIR.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 2 * 10**6


def test_model_keeps_its_weights_in_float32_and_processor_knows_every_word(model, processor):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokens = processor.tokenizer(" ".join(scenes.vocabulary()))["input_ids"]
    special = [processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id]
    assert processor.tokenizer.unk_token_id not in tokens
    assert len(set(tokens)) == len(scenes.vocabulary()) + len(special)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert processor.tokenizer("A Red, circle.")["input_ids"] == processor.tokenizer("a red circle")["input_ids"]
    assert processor.tokenizer("a zebra")["input_ids"][2] == processor.tokenizer.unk_token_id


def test_processor_leaves_the_pixels_of_a_picture_alone(processor):
    picture = scenes.render(scenes.all_scenes()[100], np.random.default_rng(7))
    pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"]
    expected = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixel_values[0], expected, rtol=0, atol=1e-6)


def test_text_features_are_pooled_at_the_end_token_whatever_the_padding(model, processor):
    text = "a large blue circle at the top left"
    with torch.no_grad():
        alone = model.get_text_features(**processor(text=[text], return_tensors="pt")).pooler_output
        padded = processor(text=[text], padding="max_length", return_tensors="pt")
        assert padded["input_ids"].shape == (1, model.config.text_config.max_position_embeddings)
        masked = model.get_text_features(**padded).pooler_output
        unmasked = model.get_text_features(input_ids=padded["input_ids"]).pooler_output
        longer = model.get_text_features(**processor(text=[text + " gray"], return_tensors="pt")).pooler_output
    torch.testing.assert_close(masked, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(unmasked, alone, rtol=0, atol=1e-5)
    assert (longer - alone).abs().max() > 1e-2


def test_tiny_clip_retrieves_close_to_the_best_possible_on_held_out_scenes(model, processor):
    random = np.random.default_rng(8)
    world = scenes.all_scenes()[scenes.held_out_scenes()]
    shown = world[random.integers(len(world), size=400)]
    named = scenes.draw_named(random, len(shown))
    pictures = [scenes.render(scene, random) for scene in shown]
    captions = [scenes.write_caption(scene, subset, random) for scene, subset in zip(shown, named, strict=True)]
    with torch.no_grad():
        output = model(**processor(images=pictures, text=captions, padding=True, return_tensors="pt"))
    fits = oracle.fit_matrix(shown, shown, named)
    share = oracle.fit_matrix(world, shown, named).mean(axis=1)
    recall = oracle.expected_recall(output.logits_per_image.numpy(), fits, share)
    best = oracle.best_recall(fits, share)
    assert recall[0] > 0.9 * best[0] and recall[1] > 0.85 * best[1]
