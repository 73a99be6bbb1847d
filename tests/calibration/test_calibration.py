"""Calibrations of untrained heads on planted pairs: what is fitted, what is said of texts, and their files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.calibration.calibration import Calibration
from modeling_asymvlm.calibration.calibration_files import CALIBRATION_FILE, TENSORS_FILE
from modeling_asymvlm.calibration.corpus import ReferenceCorpus, text_embeds_of
from tests.support.planted_pairs import planted_calibration, planted_split, untrained_head


DISTRIBUTIONS = ("vmf", "power_spherical", "deterministic")
QUERIES = planted_split(7, 40, 80)


def cosines_of(calibration: Calibration, split) -> tuple[torch.Tensor, torch.Tensor]:
    text_embeds = text_embeds_of(calibration.model, split.text_features)
    return text_embeds, F.normalize(text_embeds, dim=-1) @ F.normalize(split.image_features, dim=-1).T


def presence_of(calibration: Calibration, split, prior: float = 0.5) -> np.ndarray | None:
    text_embeds, cosines = cosines_of(calibration, split)
    first, second = cosines.topk(2, dim=1).values.T
    moments = cosines.mean(dim=1), cosines.std(dim=1, correction=0)
    return calibration.presence(text_embeds, first, second, *moments, cosines.shape[1], prior)


def assert_same(one: Calibration, other: Calibration) -> None:
    ours, theirs = one.text_report(QUERIES.text_features), other.text_report(QUERIES.text_features)
    for name in ("text_confidence", "text_confidence_interval", "fits_about", "typicality"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(one.evidence(QUERIES.image_features), other.evidence(QUERIES.image_features))
    np.testing.assert_array_equal(presence_of(one, QUERIES), presence_of(other, QUERIES))
    log_posterior = -torch.rand(9, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(one.result_confidence(log_posterior), other.result_confidence(log_posterior))
    assert (one.identity, one.head, one.reference) == (other.identity, other.head, other.reference)
    assert (one.correction, one.backbone_scale, one.gallery_size) == (
        other.correction,
        other.backbone_scale,
        other.gallery_size,
    )
    assert one.measured == other.measured


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_is_planted_is_found_and_trusted(distribution):
    calibration = planted_calibration(distribution)
    calibration.check_head(untrained_head(distribution))
    worth = calibration.measured
    assert ("concentration" in worth) == (calibration.reference is not None) == (distribution != "deterministic")
    assert worth["confidence"].is_trusted and worth["confidence"].auroc > 0.8
    assert worth["presence"].is_trusted and worth["presence"].auroc > 0.75
    assert worth["text_confidence"].is_trusted and worth["text_confidence"].auroc > 0.6
    assert (worth["confidence"].num_queries, worth["confidence"].gallery_size) == (120, 60)
    report = calibration.text_report(QUERIES.text_features)
    assert ((report.text_confidence > 0) & (report.text_confidence < 1)).all()
    assert report.text_confidence_interval.shape == (80, 2)
    assert ((report.typicality > 0) & (report.typicality <= 1)).all()
    vagueness = QUERIES.text_features[:, 0].numpy()
    assert np.corrcoef(report.text_confidence, vagueness)[0, 1] < -0.3
    presence = presence_of(calibration, QUERIES)
    assert (presence_of(calibration, QUERIES, prior=0.9) > presence).all()
    confidence = calibration.result_confidence(np.log([0.05, 0.3, 0.9]))
    assert (np.diff(confidence) > 0).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_evidence_and_pictures_that_a_text_fits_are_those_of_plain_sums(distribution):
    calibration = planted_calibration(distribution)
    law, tau = calibration.model.config.law, calibration.model.logit_scale.item()
    tau *= calibration.correction.sharpening  # of an untrained head, a temperature that fits held-out captions
    corpus = calibration.corpus
    images = F.normalize(QUERIES.image_features, dim=-1)
    logits = tau * law.scores(corpus.text_embeds.double(), images.double()).numpy()
    expected = special.logsumexp(logits, axis=0) - np.log(len(logits))
    np.testing.assert_allclose(calibration.evidence(5 * images), expected, atol=1e-4)
    text_embeds, _ = cosines_of(calibration, QUERIES)
    logits = 1.5 * tau * law.scores(text_embeds.double(), corpus.image_embeds.double()).numpy()
    posterior = special.softmax(logits, axis=1)
    fits_about = calibration.text_report(QUERIES.text_features).fits_about
    np.testing.assert_allclose(fits_about, np.exp(special.entr(posterior).sum(axis=1)), rtol=1e-3)
    assert (fits_about >= 1).all() and (fits_about <= calibration.num_reference_images * (1 + 1e-9)).all()


def test_a_bare_backbone_is_corrected_at_the_temperature_that_fits_it():
    """Whatever temperature it came with, which an untrained deterministic head has no right one for."""
    fitted = []
    for logit_scale in (0.15, 20.0):
        config = AsymVLMConfig(
            projection_dim=QUERIES.dim, distribution="deterministic", logit_scale_init=logit_scale, hidden_size=16
        )
        fitted.append(Calibration.fit(AsymVLMModel(config).eval(), planted_split(0, 100, 200), planted_split(1)))
    scales = [each.model.logit_scale.item() * each.correction.sigma for each in fitted]
    assert scales[0] == pytest.approx(scales[1], rel=0.3)
    assert fitted[0].correction.sharpening > 10
    reports = [each.text_report(QUERIES.text_features).fits_about for each in fitted]
    assert np.corrcoef(*reports)[0, 1] > 0.95
    assert reports[0].max() < 0.9 * fitted[0].num_reference_images


def test_the_same_seed_makes_the_same_calibration():

    model, splits = untrained_head(), (planted_split(0, 100, 200), planted_split(1))
    again = Calibration.fit(model, *splits, corpus="planted captions")
    assert_same(planted_calibration(), again)
    assert Calibration.fit(model, *splits, seed=1).identity != again.identity


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_calibration_comes_back_from_its_files(distribution, tmp_path):
    calibration = planted_calibration(distribution)
    calibration.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {CALIBRATION_FILE, TENSORS_FILE}
    assert_same(calibration, Calibration.from_pretrained(tmp_path, model=untrained_head(distribution)))


def test_another_head_is_refused(tmp_path):
    planted_calibration().save_pretrained(tmp_path)
    for other in (untrained_head(seed=6, mean_direction="learned"), untrained_head("power_spherical")):
        with pytest.raises(ValueError, match="other head weights"):
            Calibration.from_pretrained(tmp_path, model=other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    planted_calibration().save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in (CALIBRATION_FILE, TENSORS_FILE)}


def write(folder, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_flipped_bytes_are_refused(saved, tmp_path):
    write(tmp_path, saved)
    content = saved[TENSORS_FILE]
    for position in np.random.default_rng(0).choice(len(content), 50, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (tmp_path / TENSORS_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, or of another calibration"):
            Calibration.from_pretrained(tmp_path)
    (tmp_path / TENSORS_FILE).write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        Calibration.from_pretrained(tmp_path)


def test_missing_files_are_told(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=CALIBRATION_FILE):
        Calibration.from_pretrained(tmp_path)
    write(tmp_path, {CALIBRATION_FILE: saved[CALIBRATION_FILE]})
    with pytest.raises(ValueError, match=f"is there without {TENSORS_FILE}"):
        Calibration.from_pretrained(tmp_path)


@pytest.mark.parametrize("record_format", [0, 2, "1", None])
def test_an_unknown_format_is_refused(saved, tmp_path, record_format):
    record = {**json.loads(saved[CALIBRATION_FILE]), "format": record_format}
    write(tmp_path, {**saved, CALIBRATION_FILE: json.dumps(record).encode()})
    with pytest.raises(ValueError, match=f"format {record_format!r}, but this version reads 1"):
        Calibration.from_pretrained(tmp_path)


READ = ("head", "sha256", "head_fields", "sigma", "beta", "intercepts", "measured", "reference", "backbone_scale")


@pytest.mark.parametrize("value", ["absent", None, "text", [], {}])
@pytest.mark.parametrize("name", [*READ, "gallery_size"])
def test_a_damaged_record_is_refused(saved, tmp_path, name, value):
    record = json.loads(saved[CALIBRATION_FILE])
    if value == "absent":
        del record[name]
    elif name == "reference" and value is None:
        pytest.skip("that of a deterministic head")
    else:
        record[name] = value
    write(tmp_path, {**saved, CALIBRATION_FILE: json.dumps(record).encode()})
    with pytest.raises(ValueError, match=r"damaged|names another head"):
        Calibration.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_what_is_no_record_is_refused(saved, tmp_path, content):
    write(tmp_path, {**saved, CALIBRATION_FILE: content})
    with pytest.raises(ValueError, match=CALIBRATION_FILE):
        Calibration.from_pretrained(tmp_path)


@pytest.mark.parametrize("wrong", ["train", "validation"])
def test_splits_of_another_width_are_refused(wrong):
    splits = {"train": planted_split(0), "validation": planted_split(1), wrong: planted_split(2, dim=16)}
    with pytest.raises(ValueError, match=f"features of {wrong} are 16 wide, but the model takes 24"):
        Calibration.fit(untrained_head(), splits["train"], splits["validation"])


@pytest.mark.parametrize(("images", "captions"), [(19, 19), (19, 200), (60, 19)])
def test_fewer_than_twenty_captions_or_images_are_refused(images, captions):
    with pytest.raises(ValueError, match=rf"has {captions} captions of {min(images, captions)} images"):
        Calibration.fit(untrained_head(), planted_split(0), planted_split(1, images, captions))


def test_twenty_captions_of_twenty_images_suffice():
    calibration = Calibration.fit(untrained_head(), planted_split(0), planted_split(1, 20, 20))
    assert np.isfinite(calibration.text_report(QUERIES.text_features).fits_about).all()
    assert calibration.gallery_size == 20


def test_pairs_that_do_not_belong_together_leave_no_confidence_to_trust():
    calibration = Calibration.fit(untrained_head(), planted_split(0, 100, 200), planted_split(1, shuffled=True))
    assert not calibration.measured["text_confidence"].is_trusted
    assert not calibration.measured["confidence"].is_trusted
    assert calibration.text_confidence(QUERIES.text_features) is None
    report = calibration.text_report(QUERIES.text_features)
    assert report.text_confidence is None and report.text_confidence_interval is None
    assert report.typicality.shape == report.fits_about.shape == (80,)
    assert calibration.result_confidence(np.log([0.5])) is None
    assert np.isfinite(calibration.text_probability(QUERIES.text_features)).all()
    assert np.isfinite(calibration.result_probability(np.log([0.5]))).all()


def test_presence_is_not_said_where_it_is_not_trusted():
    calibration = planted_calibration()
    worthless = replace(calibration.of_presence, auroc_interval=(0.4, 0.6))
    assert presence_of(replace(calibration, of_presence=worthless), QUERIES) is None


def test_a_sample_of_the_corpus_keeps_captions_with_their_images():
    model, split = untrained_head(), planted_split(3, 50, 170)
    corpus, rows = ReferenceCorpus.sample(model, split, max_texts=40, max_images=30, seed=2)
    assert (len(corpus.text_embeds), len(corpus.image_embeds), len(rows.unique())) == (40, 30, 40)
    own = F.normalize(split.image_features, dim=-1)[split.text_image_index[rows]]
    np.testing.assert_allclose(corpus.image_embeds[corpus.text_image_index], own, atol=1e-3)
    expected = model(text_features=split.text_features[rows]).text_embeds.detach()
    np.testing.assert_allclose(corpus.text_embeds, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(corpus.text_embeds, corpus.text_embeds.half().float())
    again, _ = ReferenceCorpus.sample(model, split, max_texts=40, max_images=30, seed=2)
    assert torch.equal(again.text_embeds, corpus.text_embeds)
