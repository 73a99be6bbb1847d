"""`pipeline("text-uncertainty")` against the model's own output, however texts are passed."""

import json

import pytest
import torch
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import modeling_asymvlm  # noqa: F401
from modeling_asymvlm import AsymVLMModel, TextUncertaintyPipeline
from modeling_asymvlm.calibration.calibration_files import CALIBRATION_FILE
from modeling_asymvlm.texts.words import word_uncertainty
from tests.support.calibrations import make_calibration
from tests.support.training import learned


TEXTS = ["red 3 picture 17", "picture", "red  red 5", "3 4 5 6 7 8 9 red picture 10 11 12"]


@pytest.fixture
def checkpoint(tiny_clip, tiny_processor, tmp_path):
    torch.manual_seed(1)
    AsymVLMModel.from_vlm_pretrained(tiny_clip, **learned()).save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def judge(checkpoint) -> TextUncertaintyPipeline:
    return pipeline("text-uncertainty", model=str(checkpoint), device="cpu")


def expected(judge, text: str, top_words: int) -> dict:
    result = word_uncertainty(judge.model, judge.tokenizer, text)
    lowering = [word for word in result.words if word.reduction is not None and word.reduction > 0]
    words = sorted(lowering, key=lambda word: word.reduction, reverse=True)[:top_words]
    return {"uncertainty": result.uncertainty, "words": [vars(word) for word in words]}


def check(judge, results, texts, top_words: int = 3) -> None:
    assert len(results) == len(texts)
    for result, text in zip(results, texts, strict=True):
        wanted = expected(judge, text, top_words)
        assert result["uncertainty"] == pytest.approx(wanted["uncertainty"], rel=1e-5)
        assert result["concentration"] == pytest.approx(1 / wanted["uncertainty"], rel=1e-5)
        assert [word["word"] for word in result["words"]] == [word["word"] for word in wanted["words"]]
        for word, wanted_word in zip(result["words"], wanted["words"], strict=True):
            assert text[word["start"] : word["end"]] == word["word"]
            assert word["uncertainty_without"] == pytest.approx(wanted_word["uncertainty_without"], rel=1e-5)
            assert word["reduction"] == pytest.approx(wanted_word["reduction"], rel=1e-3, abs=1e-6)


def test_the_task_is_registered_by_importing_the_package(judge):
    assert isinstance(judge, TextUncertaintyPipeline)
    result = judge(TEXTS[0])
    own = {"uncertainty", "concentration", "percentile", "words"}
    of_calibration = {"note", "text_confidence", "text_confidence_interval", "gallery_size", "fits_about"}
    assert set(result) == own | of_calibration | {"reference_images", "typicality"}
    check(judge, [result], TEXTS[:1])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_texts_in_any_batch_give_what_each_gives_alone(judge, batch_size):
    check(judge, judge(TEXTS, batch_size=batch_size), TEXTS)


def test_generators_and_datasets_are_read_as_they_come(judge):
    check(judge, list(judge((text for text in TEXTS), batch_size=2)), TEXTS)
    rows = KeyDataset([{"caption": text} for text in TEXTS], "caption")
    check(judge, list(judge(rows, batch_size=2)), TEXTS)
    assert judge([]) == []


@pytest.mark.parametrize("top_words", [0, 1, 100])
def test_the_number_of_words_is_chosen_with_the_pipeline_or_the_call(judge, checkpoint, top_words):
    check(judge, judge(TEXTS, top_words=top_words), TEXTS, top_words)
    preset = pipeline("text-uncertainty", model=str(checkpoint), device="cpu", top_words=top_words)
    check(judge, preset(TEXTS), TEXTS, top_words)


def test_without_words_the_backbone_sees_each_text_once(judge, monkeypatch):
    seen = []
    features = judge.model.backbone_text_features
    monkeypatch.setattr(
        judge.model, "backbone_text_features", lambda **inputs: seen.append(inputs["input_ids"]) or features(**inputs)
    )
    judge(TEXTS, top_words=0)
    assert len(seen) == len(TEXTS)


def test_percentiles_refer_to_the_corpus_beside_the_checkpoint_or_to_ones_own(judge, checkpoint):
    assert judge(TEXTS[0])["percentile"] is None and judge.calibration is None
    uncertainty = judge(TEXTS[0])["uncertainty"]
    concentration = [1 / uncertainty * factor for factor in (0.5, 0.9, 1.1, 2.0, 3.0)]
    make_calibration(judge.model, concentration=concentration).save_pretrained(checkpoint)
    again = pipeline("text-uncertainty", model=str(checkpoint), device="cpu")
    assert again.calibration.reference.corpus == "numbers"
    assert again(TEXTS[0])["percentile"] == pytest.approx(60)
    own = make_calibration(judge.model, concentration=[1e-6], corpus="one vague text")
    assert pipeline("text-uncertainty", model=str(checkpoint), calibration=own)(TEXTS[0])["percentile"] == 0


def test_a_reference_of_other_head_weights_is_refused_and_one_that_is_found_is_left(judge, checkpoint, caplog):
    calibration = make_calibration(judge.model)
    with torch.no_grad():
        judge.model.text_head.output_layer.bias += 0.1
    with pytest.raises(ValueError, match="other head weights"):
        TextUncertaintyPipeline(model=judge.model, tokenizer=judge.tokenizer, calibration=calibration)
    calibration.save_pretrained(checkpoint)
    changed = TextUncertaintyPipeline(model=judge.model, tokenizer=judge.tokenizer)
    assert changed.calibration is None and changed(TEXTS[0])["percentile"] is None
    assert "belongs to other head weights" in caplog.text


def test_a_saved_pipeline_needs_no_remote_code_and_keeps_its_reference(judge, tmp_path):
    judge.calibration = make_calibration(judge.model)
    judge.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CALIBRATION_FILE).is_file()
    assert not list((tmp_path / "again").glob("*.py"))
    assert not json.loads((tmp_path / "again" / "config.json").read_text()).get("custom_pipelines")
    again = pipeline("text-uncertainty", model=str(tmp_path / "again"), device="cpu")
    assert again(TEXTS) == judge(TEXTS)


def test_half_precision_backbones_keep_the_reference(judge, checkpoint):
    make_calibration(judge.model, concentration=[1.0, 2.0]).save_pretrained(checkpoint)
    half = pipeline("text-uncertainty", model=str(checkpoint), dtype=torch.bfloat16, device="cpu")
    assert half(TEXTS[0])["uncertainty"] == pytest.approx(judge(TEXTS[0])["uncertainty"], rel=0.05)
    assert half.calibration is not None


def test_bad_texts_and_arguments_are_refused(judge, tiny_clip):
    with pytest.raises(ValueError, match="is empty"):
        judge("  ")
    with pytest.raises(ValueError, match="is empty"):
        list(judge(["red", ""]))
    with pytest.raises(ValueError, match="17 tokens, but the context of the backbone is 16"):
        judge(" ".join(["red"] * 16))
    with pytest.raises(TypeError, match="pass a string"):
        judge(3)
    for top_words in (-1, 1.5):
        with pytest.raises(ValueError, match="top_words must be"):
            judge("red", top_words=top_words)
    with pytest.raises(TypeError, match="no argument 'top_word'"):
        judge("red", top_word=1)
    points = AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution="deterministic")
    with pytest.raises(ValueError, match="gives points, not distributions"):
        TextUncertaintyPipeline(model=points, tokenizer=judge.tokenizer)


def test_what_a_calibration_knows_of_a_text_is_said_with_it(judge):
    calibration = make_calibration(judge.model)
    told = TextUncertaintyPipeline(model=judge.model, tokenizer=judge.tokenizer, calibration=calibration)
    tokens = judge.tokenizer(TEXTS[0], return_tensors="pt")
    report = calibration.text_report(judge.model.backbone_text_features(**tokens))
    found = told(TEXTS[0])
    assert found["typicality"] == pytest.approx(report.typicality[0])
    assert found["fits_about"] == pytest.approx(report.fits_about[0], rel=1e-5)
    assert (found["gallery_size"], found["reference_images"]) == (40, 80)
    if report.text_confidence is None:
        assert found["text_confidence"] is None and "No confidence" in found["note"]
    else:
        assert found["text_confidence"] == pytest.approx(report.text_confidence[0], rel=1e-5)
    assert (found["typicality"] < 0.05) == ("Unlike the training captions" in (found["note"] or ""))
    silent = judge(TEXTS[0])
    assert silent["text_confidence"] is silent["typicality"] is silent["fits_about"] is silent["note"] is None
