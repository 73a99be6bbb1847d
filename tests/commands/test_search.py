"""`asymvlm search`: the pictures that the library finds, from a store, a folder and a saved index."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoProcessor

from modeling_asymvlm import AsymVLMModel, EmbeddingStore, ImageIndex, encode_texts
from modeling_asymvlm.__main__ import main
from tests.support.demo_cases import make_case


TEXTS = ["red 3", "picture"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case"))


def answers(capsys, *arguments) -> list[dict]:
    assert main(["search", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_prints_what_the_library_finds(case, capsys):
    model = AsymVLMModel.from_pretrained(case.model).eval()
    queries = encode_texts(model, AutoProcessor.from_pretrained(case.model), TEXTS)
    index = ImageIndex.from_split(model, EmbeddingStore(case.model / "embeddings").split("validation"))
    expected = index.search(queries, k=4, posterior=True)
    found = answers(capsys, *TEXTS, "--model", case.model, "--split", "validation", "-k", "4")
    assert [answer["text"] for answer in found] == TEXTS
    for row, answer in enumerate(found):
        assert [image["image"] for image in answer["images"]] == expected.labels[row]
        np.testing.assert_allclose([image["score"] for image in answer["images"]], expected.scores[row])
        posterior = [image["posterior"] for image in answer["images"]]
        np.testing.assert_allclose(posterior, np.exp(expected.log_posterior[row]))
        assert answer["uncertainty"] == expected.uncertainty[row, 0]
        assert answer["confidence"] is None and answer["presence"] is None  # without a calibration
    assert main(["search", TEXTS[0], "--model", str(case.model), "--split", "validation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"red 3  (1/kappa {found[0]['uncertainty']:.4f})" and len(lines) == 6
    assert lines[1].endswith(f" %  {expected.labels[0][0]}")


def test_a_folder_of_pictures_gives_the_ranking_of_its_features_and_an_index_to_keep(case, tmp_path, capsys):
    split = EmbeddingStore(case.model / "embeddings").split("test")
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for number, image_id in enumerate(split.image_ids):
        source = case.data / "images" / f"{image_id.removeprefix('picture-')}.png"
        shutil.copy(source, photos / ("more" if number % 2 else ".") / f"{image_id}.png")
    (photos / "notes.txt").write_text("no picture")
    model = ["--model", case.model]
    of_store = answers(capsys, *TEXTS, *model)
    kept = ["--save_index", tmp_path / "index"]
    of_folder = answers(capsys, *TEXTS, *model, "--images", photos, "--batch_size", "7", *kept)
    for expected, answer in zip(of_store, of_folder, strict=True):
        names = [image["image"].rpartition("/")[2].removesuffix(".png") for image in answer["images"]]
        assert names == [image["image"] for image in expected["images"]]
        np.testing.assert_allclose(answer["images"][0]["score"], expected["images"][0]["score"], rtol=1e-4)
    assert answers(capsys, *TEXTS, *model, "--index", tmp_path / "index") == of_folder
