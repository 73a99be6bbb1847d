"""The command of the comparison: tables and figures, finished runs that are kept, failed ones that are reported."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.comparison import compare, plots, runs, tables
from benchmarks.comparison.baselines import judging
from benchmarks.comparison.baselines.methods import METHODS
from benchmarks.trust.heads import halves
from modeling_asymvlm.evaluation import rank_both_ways, selective_metrics
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore


REPOSITORY = Path(__file__).resolve().parents[2]

# Adds a method that fails, which the command line cannot.
WITH_A_BROKEN_METHOD = """
import sys
from benchmarks.comparison import compare
from benchmarks.comparison.baselines import judging
from benchmarks.comparison.baselines.methods import METHODS, Entry
from benchmarks.comparison.baselines.protocol import Method

class Broken(Method):
    def __init__(self, dim):
        super().__init__()

    def predict(self, split):
        raise RuntimeError("out of order")

judging.NUM_RESAMPLES = 5
METHODS["broken"] = Entry("Broken", Broken)
sys.exit(compare.main(sys.argv[1:]))
"""


def noisy_split(images: int, seed: int) -> EmbeddingSplit:
    """Two captions an image, one noisier and shorter than the other."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(images, 8, generator=generator)
    index = torch.arange(images).repeat_interleave(2)
    noise = torch.tensor([0.5, 1.0]).repeat(images)
    return EmbeddingSplit(
        image_ids=[str(row) for row in range(images)],
        image_features=points,
        captions=["a long caption", "caption"] * images,
        text_features=points[index] + noise[:, None] * torch.randn(2 * images, 8, generator=generator),
        text_image_index=index,
        columns={"ambiguity": noise.double().numpy(), "level": np.array([1, 0] * images)},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("features") / "store"
    sizes = {"train": 520, "validation": 40, "test": 40}
    EmbeddingStore.write(path, {name: noisy_split(size, seed) for seed, (name, size) in enumerate(sizes.items())}, {})
    return path


@pytest.fixture
def quick(monkeypatch):
    """Little for the bootstrap to do."""
    monkeypatch.setattr("benchmarks.comparison.baselines.judging.NUM_RESAMPLES", 5)


def test_a_failed_method_is_reported_and_the_others_go_on(store, tmp_path):
    command = [sys.executable, "-c", WITH_A_BROKEN_METHOD, "--embeddings", str(store), "--output", str(tmp_path)]
    command += ["--seeds", "0", "--methods", "broken", "cosine", "vmf"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1, result.stderr
    assert "failed: broken, seed 0: RuntimeError: out of order" in result.stdout
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["cosine.json", "vmf-0.json"]
    tables = json.loads((tmp_path / "comparison.json").read_text())["tables"]
    for rows in tables.values():
        assert {row["method"] for row in rows} == {"cosine of the backbone", "AsymVLM vMF"}
    assert "AsymVLM vMF" in (tmp_path / "comparison.md").read_text()
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_finished_run_is_kept_until_what_it_depends_on_changes(store, tmp_path, monkeypatch, quick, capsys):
    trained = []
    real_run = compare.run

    def counted(entry, *arguments):
        trained.append(entry.label)
        return real_run(entry, *arguments)

    monkeypatch.setattr(compare, "run", counted)
    command = ["--embeddings", str(store), "--output", str(tmp_path), "--methods", "cosine", "vmf", "--seeds"]
    assert compare.main([*command, "0"]) == 0
    assert trained == ["cosine of the backbone", "AsymVLM vMF"]
    first = (tmp_path / "comparison.md").read_text()
    assert compare.main([*command, "0"]) == 0
    assert len(trained) == 2 and (tmp_path / "comparison.md").read_text() == first
    assert compare.main([*command, "0", "1"]) == 0  # one more seed
    assert trained[2:] == ["AsymVLM vMF"]
    assert compare.main([*command, "0", "--backbone_logit_scale", "5"]) == 0  # another setting of the cosine alone
    assert trained[3:] == ["cosine of the backbone"]
    assert compare.main([*command[:4], "--methods", "cosine", "--seeds", "0"]) == 0  # the other stays
    assert trained[4:] == ["cosine of the backbone"] and "AsymVLM vMF" in (tmp_path / "comparison.md").read_text()
    for name in ("recall_by_level", "risk_coverage", "reliability", "concentration_by_ambiguity"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    capsys.readouterr()


def test_an_unfinished_run_file_is_an_error_and_not_a_result(store, tmp_path, quick, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cosine.json").write_text('{"fingerprint": ')
    command = ["--embeddings", str(store), "--output", str(tmp_path), "--methods", "cosine", "--seeds", "0"]
    assert compare.main(command) == 1
    assert "failed: cosine" in capsys.readouterr().out


def test_a_store_or_the_embedded_example_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        compare.main([])
    assert "--embeddings DIR, or --scenes" in capsys.readouterr().err


def test_every_method_is_named_once_and_its_settings_are_json():
    labels = [entry.label for entry in METHODS.values()]
    assert len(set(labels)) == len(labels)
    for entry in METHODS.values():
        assert json.dumps(entry.description())


def test_every_drawn_method_has_a_colour():
    drawn = [entry for entry in METHODS.values() if entry.drawn]
    assert len(drawn) <= len(plots.COLOURS) == len(plots.MARKERS)


def test_figures_of_an_oracle_are_expectations_and_the_true_posterior_is_the_best(store, quick):
    splits = {name: EmbeddingStore(store).split(name) for name in ("validation", "test")}
    cosine = METHODS["cosine"].build(8, logit_scale=5.0)
    predictions = [cosine.predict(splits[name]) for name in ("validation", "test")]
    index = splits["test"].text_image_index
    generator = np.random.default_rng(0)
    probability = generator.random((80, 40)) ** 8
    probability[np.arange(80), index] += 0.5
    oracle = (probability / probability.sum(axis=1, keepdims=True), probability / probability.sum(axis=0))
    record = judging.judge(*predictions, splits["validation"], splits["test"], oracle)
    top = predictions[1].scores.argmax(dim=1)
    probability_of_top = oracle[0][np.arange(80), top]
    for name, values in predictions[1].text_uncertainty.items():
        draws = generator.random((4000, 80)) < probability_of_top
        drawn = [selective_metrics(values, hits) for hits in draws]
        expected = record["oracle"]["expected"][name]["text_to_image"]
        assert expected["aurc"] == pytest.approx(np.mean([each["aurc"] for each in drawn]), abs=0.005)
        best = record["oracle"]["true_posterior"]["text_to_image"]
        assert best["aurc"] < expected["aurc"]
    assert record["headline"] in predictions[0].text_uncertainty and record["headline"] != "true ambiguity"
    runs, labels = {"cosine": [record]}, {"cosine": "cosine"}
    short, against = tables.rows_in_short(runs, labels), tables.rows_against_oracle(runs, labels)
    expected = record["oracle"]["expected"][record["headline"]]["text_to_image"]
    assert short[0]["AURC, text alone"]["values"] == [expected["aurc"]]
    assert against[0]["t→i % of the best"]["values"] == [100.0]
    assert tables.as_markdown(short) and tables.as_markdown(against)


def test_the_headline_is_chosen_on_the_validation_split(store, quick):
    split = EmbeddingStore(store).split("test")
    cosine = METHODS["cosine"].build(8, logit_scale=5.0).predict(split)
    right = rank_both_ways(cosine.scores, split.text_image_index).text_to_image_rank == 0
    better, worse = -torch.from_numpy(right.astype(float)), torch.from_numpy(right.astype(float))
    validation = replace(cosine, text_uncertainty={"first": worse, "second": better})
    test = replace(cosine, text_uncertainty={"first": better, "second": worse})
    assert judging.judge(validation, test, split, split)["headline"] == "second"


@pytest.fixture(scope="module")
def small_store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("features") / "small"
    sizes = {"train": 60, "validation": 30, "test": 30}
    splits = {name: noisy_split(size, 7 + seed) for seed, (name, size) in enumerate(sizes.items())}
    for name, split in splits.items():
        images = [f"{name} {image}" for image in split.image_ids]
        splits[name] = replace(split, image_ids=images, columns={})
    EmbeddingStore.write(path, splits, {})
    return path


def tables_of(folder: Path) -> dict[str, list[dict]]:
    return json.loads((folder / "comparison.json").read_text())["tables"]


def test_a_store_of_a_few_pairs_is_compared_with_the_correction_of_every_method(small_store, store, tmp_path, quick):
    command = ["--embeddings", str(small_store), "--output", str(tmp_path), "--seeds", "0", "--judge_on", str(store)]
    command += ["--methods", "cosine", "nnn", "pcmepp", "vmf", "--learning_rate_factors", "0.1", "1"]
    assert compare.main(command) == 0
    of_title = tables_of(tmp_path)
    against = of_title["Against the backbone's cosine, and with the evidence correction"]
    assert [row["method"] for row in against] == ["cosine of the backbone", "cosine, NNN", "PCME++", "AsymVLM vMF"]
    for row in against:
        assert 0 <= row["t→i R@1, corrected"]["values"][0] <= 1 and row["beta"]["values"][0] >= 0
    assert against[0]["t→i kept"]["values"] == [1.0] and against[0]["t→i − cosine"]["values"] == [0.0]
    for row in against:
        share = row["t→i R@1"]["values"][0] / against[0]["t→i R@1"]["values"][0]
        assert row["t→i kept"]["values"] == [pytest.approx(share)]
    elsewhere = of_title[f"Trained on {small_store.name}, judged on {store.name}"]
    test = EmbeddingStore(store).split("test")
    cosines = METHODS["cosine"].build(8, logit_scale=5.0).predict(test).scores
    recall = (cosines.argmax(dim=1) == test.text_image_index).double().mean().item()
    assert elsewhere[0]["t→i R@1"]["values"] == [pytest.approx(recall)]
    for name, rates in (("pcmepp", [0.1, 1.0]), ("cosine", None)):
        file = tmp_path / "runs" / (f"{name}-0.json" if rates else f"{name}.json")
        training = json.loads(file.read_text())["record"]["training"]
        assert training is None if rates is None else training["learning_rate_factor"] in rates


def test_the_learning_rate_of_lowest_validation_loss_is_kept(small_store):
    splits = {name: EmbeddingStore(small_store).split(name) for name in ("train", "validation", "test")}
    losses = {}
    for factors in ((0.01,), (1.0,), (0.01, 1.0)):
        _, training = runs._trained(METHODS["pfe"], splits, 0, runs.Protocol("cpu", None, factors))
        losses[factors] = min([training["initial_loss"], *training["validation_losses"]])
    assert losses[0.01,] != losses[1.0,]
    assert losses[0.01, 1.0] == min(losses[0.01,], losses[1.0,])


def test_halves_are_parted_anew_for_each_seed(small_store, tmp_path, quick, capsys):
    command = ["--embeddings", str(small_store), "--output", str(tmp_path), "--seeds", "0", "1", "--halves"]
    assert compare.main([*command, "--methods", "cosine", "nnn"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "cosine-0.json",
        "cosine-1.json",
        "nnn-0.json",
        "nnn-1.json",
    ]
    rows = tables_of(tmp_path)["In short, text → image"]
    assert [len(row["t→i R@1"]["values"]) for row in rows] == [2, 2]
    assert "random halves 0 1" in capsys.readouterr().out


def test_halves_hold_every_image_once_with_its_captions(small_store):
    splits = {name: EmbeddingStore(small_store).split(name) for name in ("train", "validation", "test")}
    parted = halves(splits, 3)
    assert {name: len(split.image_ids) for name, split in parted.items()} == {
        "train": 45,
        "validation": 15,
        "test": 60,
    }
    seen = [image for split in parted.values() for image in split.image_ids]
    assert sorted(seen) == sorted(image for split in splits.values() for image in split.image_ids)
    features = {
        image: split.image_features[row].tolist()
        for split in splits.values()
        for row, image in enumerate(split.image_ids)
    }
    texts = {
        tuple(split.text_features[row].tolist()): split.image_ids[split.text_image_index[row]]
        for split in splits.values()
        for row in range(len(split.captions))
    }
    for split in parted.values():
        assert len(split.captions) == 2 * len(split.image_ids)
        assert [features[image] for image in split.image_ids] == split.image_features[:].tolist()
        for row, feature in enumerate(split.text_features[:].tolist()):
            assert texts[tuple(feature)] == split.image_ids[split.text_image_index[row]]
    assert halves(splits, 3)["test"].image_ids == parted["test"].image_ids != halves(splits, 4)["test"].image_ids


def test_a_figure_that_fails_is_named_in_its_cell_and_the_rest_is_printed(small_store, tmp_path, quick, capsys):
    """Captions of one image in place of another's: their scores lie below the gallery's, and no scale fits."""
    splits = {name: EmbeddingStore(small_store).split(name) for name in ("train", "validation", "test")}
    wrong = splits["validation"]
    wrong = replace(wrong, text_features=-wrong.text_features[:], image_features=wrong.image_features[:])
    EmbeddingStore.write(tmp_path / "wrong", {**splits, "validation": wrong}, {})
    command = ["--embeddings", str(tmp_path / "wrong"), "--output", str(tmp_path / "out"), "--seeds", "0"]
    assert compare.main([*command, "--methods", "cosine"]) == 0
    printed = capsys.readouterr().out
    assert "| failed " in printed and "above the mean of the gallery" in printed
    short = tables_of(tmp_path / "out")["In short, text → image"][0]
    assert short["NLL, posterior"]["failed"] and 0 < short["t→i R@1"]["values"][0] < 1


def test_a_perfect_split_keeps_its_tables_and_says_that_the_scale_is_a_bound(tmp_path, quick, capsys):
    splits = {}
    for seed, (name, size) in enumerate({"train": 60, "validation": 30, "test": 30}.items()):
        points = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
        splits[name] = EmbeddingSplit(
            [f"{row}" for row in range(size)], points, ["a"] * size, points, torch.arange(size)
        )
    EmbeddingStore.write(tmp_path / "perfect", splits, {})
    command = ["--embeddings", str(tmp_path / "perfect"), "--output", str(tmp_path / "out"), "--seeds", "0"]
    assert compare.main([*command, "--methods", "cosine", "nnn", "vmf-small-data"]) == 0
    printed = capsys.readouterr().out
    assert "text_to_image, validation: every query finds its own answer first" in printed and "undefined" in printed
    for rows in tables_of(tmp_path / "out").values():
        assert {row["method"] for row in rows} == {"cosine of the backbone", "cosine, NNN", "AsymVLM vMF, default"}
    assert tables_of(tmp_path / "out")["In short, text → image"][0]["t→i R@1"]["values"] == [1.0]


def test_cells_show_seeds_or_the_interval_of_one_run():
    def text(values, interval=None):
        return tables._text(tables._cell(values, 2, interval))

    assert text([0.5, 0.7]) == "0.60 ± 0.14"
    assert text([0.5], [0.4, 0.6]) == "0.50 [0.40, 0.60]"
    assert text([None, None]) == ""
    assert text([0.5, float("nan")]) == "undefined"
