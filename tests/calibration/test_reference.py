"""A corpus's uncertainties beside a checkpoint: percentiles against scipy, files, and whose head they are of."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel, Calibration
from modeling_asymvlm.calibration.calibration_files import CALIBRATION_FILE
from modeling_asymvlm.calibration.reference import MAX_KEPT, UncertaintyReference
from modeling_asymvlm.reporting.run_files import calibrate
from tests.support.calibrations import make_calibration
from tests.support.training import make_pairs


def make_model(seed: int = 0, **config) -> AsymVLMModel:
    torch.manual_seed(seed)
    return AsymVLMModel(AsymVLMConfig(projection_dim=8, hidden_size=16, num_hidden_layers=1, **config)).eval()


@pytest.fixture
def model() -> AsymVLMModel:
    return make_model()


@pytest.mark.parametrize("num_texts", [1, 2, 300, MAX_KEPT])
def test_percentiles_of_a_small_corpus_are_those_of_scipy(model, num_texts):
    generator = np.random.default_rng(num_texts)
    concentration = generator.integers(1, 40, num_texts).astype(float)  # with ties
    reference = UncertaintyReference.from_concentration(concentration, model, corpus="numbers")
    assert (reference.corpus, reference.num_texts) == ("numbers", num_texts)
    for uncertainty in (*1 / np.arange(1.0, 40), 0.001, 7.0):
        expected = stats.percentileofscore(1 / concentration, uncertainty, kind="mean")
        assert reference.percentile(uncertainty) == pytest.approx(expected, abs=1e-10)


def test_the_last_digits_of_a_text_in_another_batch_are_no_difference(model):
    reference = UncertaintyReference.from_concentration([1.0, 3.0, 3.0, 3.0, 9.0], model, corpus="numbers")
    assert {reference.percentile(1 / (3.0 + noise)) for noise in (-3e-6, 0.0, 3e-6)} == {50.0}


@pytest.mark.parametrize("num_texts", [MAX_KEPT + 1, 50_000])
def test_percentiles_of_a_large_corpus_are_within_a_tenth(model, num_texts):
    generator = np.random.default_rng(num_texts)
    concentration = generator.gamma(3.0, size=num_texts)
    reference = UncertaintyReference.from_concentration(concentration, model, corpus="numbers")
    assert len(reference.uncertainties) == MAX_KEPT and reference.num_texts == num_texts
    assert reference.uncertainties[0] == 1 / concentration.max()
    assert reference.uncertainties[-1] == 1 / concentration.min()
    for uncertainty in generator.choice(1 / concentration, 500):
        expected = stats.percentileofscore(1 / concentration, uncertainty, kind="mean")
        assert abs(reference.percentile(uncertainty) - expected) <= 0.1


def test_features_give_the_concentrations_of_the_model(model, monkeypatch):
    monkeypatch.setattr("modeling_asymvlm.calibration.corpus.ROWS_IN_HEAD", 7)
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    of_features = UncertaintyReference.from_features(model, features, corpus="texts")
    with torch.no_grad():
        expected = np.sort(1 / model(text_features=features).concentration.double().numpy())
    np.testing.assert_allclose(of_features.uncertainties, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no uncertainty"):
        UncertaintyReference.from_features(make_model(distribution="deterministic"), features, corpus="texts")


def test_a_calibration_comes_back_from_its_folder_and_from_a_repository(model, tmp_path):
    calibration = make_calibration(model)
    calibration.save_pretrained(tmp_path)
    assert Calibration.from_pretrained(tmp_path).identity == calibration.identity
    assert Calibration.from_pretrained(tmp_path).reference == calibration.reference
    repository = tmp_path / "cache" / "models--tests--head"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    arguments = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(FileNotFoundError, match="'tests/head' has no"):
        Calibration.from_pretrained("tests/head", **arguments)
    calibration.save_pretrained(repository / "snapshots" / commit)
    assert Calibration.from_pretrained("tests/head", **arguments).reference == calibration.reference
    assert Calibration.from_pretrained("tests/head", revision=commit, **arguments).identity == calibration.identity


def test_another_head_is_told_from_its_own(model, tmp_path):
    reference = UncertaintyReference.from_concentration([1.0, 2.0], model, corpus="numbers")
    model.save_pretrained(tmp_path)
    reference.check_head(AsymVLMModel.from_pretrained(tmp_path))
    for other in (make_model(seed=1), make_model(distribution="vmf")):
        with pytest.raises(ValueError, match="'numbers' were computed with other head weights"):
            reference.check_head(other)
    with torch.no_grad():
        model.text_head.output_layer.bias[3] += 1e-6
    with pytest.raises(ValueError, match="other head weights"):
        reference.check_head(model)


def test_what_is_no_calibration_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=CALIBRATION_FILE):
        Calibration.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        Calibration.from_pretrained(tmp_path / "no such place")
    make_calibration(model).save_pretrained(tmp_path)
    content = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    of_reference = content["reference"]
    damages = [{"uncertainties": [2.0, 1.0]}, {"uncertainties": []}, {"uncertainties": None}, {"num_texts": 0}]
    records = [content | {"reference": of_reference | damage} for damage in damages]
    records += [
        {name: value for name, value in content.items() if name != missing} for missing in ("beta", "measured")
    ]
    for record in records:
        (tmp_path / CALIBRATION_FILE).write_text(json.dumps(record))
        with pytest.raises(ValueError, match="is damaged"):
            Calibration.from_pretrained(tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Calibration.from_pretrained(tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ValueError, match="format 2, but this version reads 1"):
        Calibration.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from 1 to that number"):
        UncertaintyReference.from_concentration([], model, corpus="nothing")
    with pytest.raises(ValueError, match="positive and ascending"):
        UncertaintyReference.from_concentration([1.0, float("nan")], model, corpus="numbers")


def test_training_leaves_the_calibration_with_the_reference_of_the_validation_captions(model, tmp_path):
    train, validation = (make_pairs(seed, 40, 60, dim=8).split for seed in (2, 3))
    saved, _ = calibrate(tmp_path, model, train, validation, {"dataset": "pairs"})
    reference = Calibration.from_pretrained(tmp_path, model=model).reference
    assert (reference.corpus, reference.num_texts) == ("validation captions of pairs", 60)
    assert reference == saved.reference
    deterministic = make_model(distribution="deterministic")
    assert calibrate(tmp_path, deterministic, train, validation, {"dataset": "pairs"})[0].reference is None
    too_small = make_pairs(4, 10, 60, dim=8).split
    nothing, sentences = calibrate(tmp_path, model, train, too_small, {"dataset": "pairs"})
    assert nothing is None and "60 captions of 10 images" in sentences[0]
    assert not (tmp_path / CALIBRATION_FILE).exists()
