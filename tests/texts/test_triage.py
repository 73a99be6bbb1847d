"""Triage against brute force on a tiny model; reports, readers, and refusals in one sentence."""

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.commands.triage import main
from modeling_asymvlm.model.distributions import VonMisesFisher
from modeling_asymvlm.pairs.captions import Captions, read_captions
from modeling_asymvlm.reporting.triage_report import SCHEMA, report_rows, summary
from modeling_asymvlm.texts.divergences import directional_divergence, relative_divergence
from modeling_asymvlm.texts.encoding import backbone_features
from modeling_asymvlm.texts.tokenization import tokenize_texts
from modeling_asymvlm.texts.triage import triage
from tests.support.calibrations import make_calibration
from tests.support.training import learned


CAPTIONS = [
    "red 3",
    "picture 4 5",
    "red 3",
    "5 6 7 red",
    "red  3",
    "9 10 picture",
    "11",
    "red 12 13",
    "14 15 16 17 18",
]
IMAGES = ["a", "a", "b", "b", "b", "c", "d", "d", "a"]


@pytest.fixture
def model(tiny_clip) -> AsymVLMModel:
    torch.manual_seed(1)
    return AsymVLMModel.from_vlm_pretrained(tiny_clip, **learned(distribution="vmf")).eval()


@pytest.fixture
def checkpoint(model, tiny_processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def table(tmp_path):
    rows = [{"caption": text, "image_id": image} for text, image in zip(CAPTIONS, IMAGES, strict=True)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "captions.jsonl"


def laws(model, tiny_processor) -> VonMisesFisher:
    """The captions' laws, each embedded alone."""
    inputs = [tiny_processor(text=[text], return_tensors="pt") for text in CAPTIONS]
    with torch.no_grad():
        eta = torch.cat([model.get_text_features(**tokens).pooler_output for tokens in inputs])
    return VonMisesFisher.from_natural_parameter(eta)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_duplicates_and_contradictions_are_those_of_brute_force(model, tiny_processor, batch_size):
    threshold = 0.05
    each = laws(model, tiny_processor)
    # No pair of one image lies on this quantile, where rounding would decide.
    found = triage(
        model, tiny_processor.tokenizer, CAPTIONS, IMAGES, contradiction_quantile=0.35, batch_size=batch_size
    )
    np.testing.assert_allclose(found.concentration, each.concentration, rtol=1e-5)
    n = len(CAPTIONS)
    rows = VonMisesFisher(each.loc[:, None].double(), each.concentration[:, None].double(), validate_args=False)
    columns = VonMisesFisher(each.loc.double(), each.concentration.double(), validate_args=False)
    apart = relative_divergence(rows, columns).numpy().copy()
    np.fill_diagonal(apart, np.inf)
    close = apart <= threshold
    assert close.any() and not close.any(axis=1).all()
    assert (found.duplicates.nearest >= 0).tolist() == close.any(axis=1).tolist()
    assert found.duplicates.group[[0, 2, 4]].tolist() == [0, 0, 0]
    assert found.duplicates.divergence[[0, 2]].tolist() == [0, 0]
    direction = directional_divergence(rows, columns).numpy()
    same = np.array(IMAGES)[:, None] == np.array(IMAGES)
    assert np.quantile(direction[~same], 0.2) <= found.contradiction_threshold <= np.quantile(direction[~same], 0.4)
    at_odds = np.where(same & ~np.eye(n, dtype=bool) & (direction > found.contradiction_threshold), direction, -1)
    expected = np.where(at_odds.max(axis=1) > 0, at_odds.argmax(axis=1), -1)
    assert (expected >= 0).any() and (expected < 0).any()
    np.testing.assert_array_equal(found.contradiction, expected)
    chosen = expected >= 0
    np.testing.assert_allclose(found.contradiction_divergence[chosen], at_odds.max(axis=1)[chosen], rtol=1e-4)
    assert np.isnan(found.contradiction_divergence[~chosen]).all()


def test_without_images_to_share_nothing_contradicts(model, tiny_processor):
    for images in (None, list("abcdefghi"), ["a"] * 9):
        found = triage(model, tiny_processor.tokenizer, CAPTIONS, images)
        assert found.contradiction_threshold is None and (found.contradiction == -1).all()


def test_captions_beyond_the_context_are_named(model, tiny_processor):
    found = triage(model, tiny_processor.tokenizer, ["red 3", " ".join(["red"] * 15), " ".join(["red"] * 16)])
    assert found.cut.tolist() == [False, False, True]


def test_captions_that_say_nothing_are_refused_by_their_place(model, tiny_processor):
    with pytest.raises(ValueError, match="Text 3 is empty: write something"):
        triage(model, tiny_processor, ["red", "red", "red 3", " "])
    with pytest.raises(TypeError, match="Text 1 is of type NoneType: pass a string"):
        triage(model, tiny_processor, ["red", None])
    with pytest.raises(ValueError, match="There are no captions"):
        triage(model, tiny_processor, [])


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_the_report_has_a_line_for_each_caption_the_vaguest_first(checkpoint, table, tmp_path, capsys, ending):
    model = AsymVLMModel.from_pretrained(checkpoint)
    calibration = make_calibration(model)
    calibration.save_pretrained(checkpoint)
    report = tmp_path / f"report{ending}"
    assert main([str(table), "--model", str(checkpoint), "--output", str(report)]) == 0
    if ending == ".jsonl":
        rows = [json.loads(line) for line in report.read_text().splitlines()]
    else:
        assert pq.read_schema(report).equals(SCHEMA)
        rows = pq.read_table(report).to_pylist()
    assert [row["rank"] for row in rows] == list(range(len(CAPTIONS)))
    assert sorted(row["row"] for row in rows) == list(range(len(CAPTIONS)))
    uncertainties = [row["uncertainty"] for row in rows]
    assert uncertainties == sorted(uncertainties, reverse=True)
    for row in rows:
        assert set(row) == set(SCHEMA.names)
        assert (row["caption"], row["image_id"]) == (CAPTIONS[row["row"]], IMAGES[row["row"]])
        assert row["percentile"] == calibration.reference.percentile(row["uncertainty"])
        assert 1 <= row["fits_about"] <= 80 and 0 < row["typicality"] <= 1
        assert row["uncertainty"] * row["concentration"] == pytest.approx(1)
    output = capsys.readouterr().out
    assert "9 captions" in output and "Near-duplicates: " in output and str(report) in output
    assert {file.name for file in tmp_path.iterdir()} >= {"captions.jsonl", report.name}


def test_a_calibration_judges_each_caption_by_its_own_features(tiny_clip, tiny_processor):
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution="vmf").eval()
    calibration = make_calibration(model, trusted=True)
    found = triage(model, tiny_processor.tokenizer, CAPTIONS, IMAGES, calibration=calibration)
    expected = calibration.text_report(backbone_features(model, tokenize_texts(tiny_processor.tokenizer, CAPTIONS)))
    for name in ("text_confidence", "text_confidence_interval", "fits_about"):
        np.testing.assert_allclose(getattr(found.report, name), getattr(expected, name), rtol=1e-3)
    np.testing.assert_allclose(found.report.typicality, expected.typicality, atol=0.01)
    captions = Captions(CAPTIONS, list(range(len(CAPTIONS))), IMAGES)
    rows = {row["row"]: row for row in report_rows(captions, found, calibration)}
    for place, confidence in enumerate(found.report.text_confidence):
        assert rows[place]["text_confidence"] == confidence and 0 < confidence < 1
    unlike = int((found.report.typicality < 0.05).sum())
    assert f"{unlike} captions are unlike the model's training captions (p < 0.05)" in summary(captions, found)


def test_without_a_calibration_or_one_to_trust_there_are_no_numbers_of_it(model, tiny_processor):
    captions = Captions(CAPTIONS, list(range(len(CAPTIONS))), IMAGES)
    calibrated = ("percentile", "text_confidence", "fits_about", "typicality")
    found = triage(model, tiny_processor.tokenizer, CAPTIONS, IMAGES)
    assert found.report is None and "unlike" not in summary(captions, found)
    for row in report_rows(captions, found, None):
        assert [row[name] for name in calibrated] == [None] * 4
    untrusted = make_calibration(model)
    found = triage(model, tiny_processor.tokenizer, CAPTIONS, IMAGES, calibration=untrusted)
    for row in report_rows(captions, found, untrusted):
        assert row["text_confidence"] is None and row["fits_about"] >= 1


def test_captions_are_read_from_tables_with_and_without_images(tmp_path, picture_folder):
    texts = tmp_path / "texts.csv"
    texts.write_text("id,text\n1,red\n2,picture 3\n")
    found = read_captions(str(texts))
    assert (found.texts, found.rows, found.image_ids) == (["red", "picture 3"], [0, 1], None)
    assert read_captions(str(texts), image_id_column="id").image_ids == ["1", "2"]
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps([{"captions": ["red", "red 3"]}, {"captions": ["picture"]}]))
    found = read_captions(str(lists))
    assert (found.rows, found.image_ids) == ([0, 0, 1], ["0", "0", "1"])
    pictures = tmp_path / "pictures.parquet"
    content = {"image": [{"bytes": b"x", "path": None}] * 2, "caption": ["red", "red 3"]}
    datasets.Dataset.from_dict(content).to_parquet(pictures)
    assert read_captions(str(pictures)).image_ids is None
    of_folder = read_captions(str(picture_folder))
    assert len(of_folder.texts) == 16 and len(set(of_folder.image_ids)) == 8
    numbers = {text.split()[1]: image for text, image in zip(of_folder.texts, of_folder.image_ids, strict=True)}
    assert len(set(numbers.values())) == 8


def test_equal_ids_in_two_splits_are_two_images(tmp_path):
    for split, word in (("train", "red"), ("validation", "picture"), ("test", "3")):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{split}.png")
        row = {"image": f"{split}.png", "image_id": 0, "captions": [word, f"{word} 1"]}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    found = read_captions(str(tmp_path))
    assert sorted(found.texts) == ["3", "3 1", "picture", "picture 1", "red", "red 1"]
    assert sorted(found.image_ids) == [f"{split}/0" for split in ("test", "train", "validation") for _ in range(2)]


def refusal(capsys, *arguments) -> str:
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as left:
        code = left.code
    output = capsys.readouterr()
    error = [line for line in output.err.splitlines() if line.startswith("triage: error: ")]
    assert code == 2 and not output.out and len(error) == 1, (code, output)
    return error[0]


def test_bad_files_and_arguments_end_in_one_sentence(checkpoint, table, tmp_path, tiny_clip, capsys):
    model = ("--model", checkpoint)
    assert "There is no file" in refusal(capsys, tmp_path / "nowhere.jsonl", *model)
    for path in ("../nope", "./nope", "/nope", "~/nope", "a/b/nope"):
        assert f"--model: There is no file or folder {path!r}." in refusal(capsys, table, "--model", path)
        assert f"There is no file or folder {path!r}." in refusal(capsys, path, *model)
    contents = {
        "broken": ('{"caption": "red"', "cannot be read"),
        "empty": ('{"caption": "red"}\n{"caption": " "}', "row 1 has an empty caption"),
        "number": ('{"caption": 3}', "row 0 has no text"),
        "columns": ('{"title": "red"}', "there is no column 'caption'; it has title"),
        "ids": ('{"caption": "red", "image_id": null}\n{"caption": "red", "image_id": "a"}', "row 0: 'image_id' must"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
        assert message in refusal(capsys, tmp_path / f"{name}.jsonl", *model)
    assert "--image_id_column" in refusal(capsys, table, *model, "--image_id_column", "picture")
    assert "must end in .jsonl or .parquet" in refusal(capsys, table, *model, "--output", tmp_path / "report.csv")
    assert "exists already" in refusal(capsys, table, *model, "--output", table)
    assert "there is no folder" in refusal(capsys, table, *model, "--output", tmp_path / "no" / "report.jsonl")
    for option, value in (("duplicate_divergence", -1), ("contradiction_quantile", 1.5), ("batch_size", 0)):
        assert f"--{option} must" in refusal(capsys, table, *model, f"--{option}", value)
    assert "are required: --model" in refusal(capsys, table)
    tiny_clip.save_pretrained(tmp_path / "clip")
    assert "is a backbone, or another model" in refusal(capsys, table, "--model", tmp_path / "clip")
    points = tmp_path / "points"
    AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution="deterministic").save_pretrained(points)
    for file in checkpoint.glob("token*"):
        (points / file.name).write_bytes(file.read_bytes())
    assert "gives points" in refusal(capsys, table, "--model", points)


def test_a_stop_while_writing_leaves_no_report(checkpoint, table, tmp_path, monkeypatch):
    def interrupted(*_):
        yield {name: None for name in SCHEMA.names}
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_asymvlm.commands.triage.report_rows", interrupted)
    reports = tmp_path / "reports"
    reports.mkdir()
    for name in ("report.jsonl", "report.parquet"):
        with pytest.raises(KeyboardInterrupt):
            main([str(table), "--model", str(checkpoint), "--output", str(reports / name)])
        assert not list(reports.iterdir())


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    output = capsys.readouterr().out
    assert left.value.code == 0
    assert "contradiction_divergence" in output and "--duplicate_divergence" in output
