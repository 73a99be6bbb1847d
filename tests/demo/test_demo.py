"""The page's answers: pictures and what is refused of uploads, rankings, sets, and their HTML."""

import io
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.demo import gallery as gallery_module
from modeling_asymvlm.demo import loading, pictures, rendering
from modeling_asymvlm.pairs.sources import CaptionedImage
from modeling_asymvlm.search.image_index import ImageIndex
from modeling_asymvlm.store.embedding_store import EmbeddingStore
from modeling_asymvlm.texts.encoding import backbone_features, encode_texts
from modeling_asymvlm.texts.tokenization import tokenize_texts
from tests.support.calibrations import make_calibration
from tests.support.demo_cases import make_case
from tests.support.picture_source import PictureSource


def encoded(image: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def gallery(case):
    return loading.open_gallery(str(case.model), None, str(case.data), None, gallery_size=100)


# Pictures


@pytest.mark.parametrize("form", pictures.UPLOAD_FORMATS)
def test_an_upload_is_decoded_as_rgb_in_every_format_that_is_offered(form):
    picture = pictures.uploaded_picture(encoded(Image.new("L", (30, 20)), form))
    assert (picture.mode, picture.size) == ("RGB", (30, 20))


def test_an_upload_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert pictures.uploaded_picture(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (20, 30)
    deep = encoded(Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)), "PNG")
    assert np.array_equal(pictures.uploaded_picture(deep), CaptionedImage("a", deep, ["x"]).open())
    assert np.asarray(pictures.uploaded_picture(deep)).mean() == pytest.approx(127.5, abs=1)


NOISE = Image.frombytes("RGB", (64, 64), np.random.default_rng(0).bytes(64 * 64 * 3))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no picture"),
        (b"hello", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (encoded(NOISE, "TIFF"), "no picture"),
        (encoded(NOISE, "PNG")[:3000], "broken"),
        (encoded(NOISE, "JPEG")[:1000], "broken"),
        (encoded(Image.new("1", (5001, 5000)), "PNG"), "more than 25 million pixels"),
        (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "more than 25 million pixels"),
        (encoded(Image.new("1", (20_000, 10_000)), "PNG"), "more than 25 million pixels"),
        (bytes(pictures.MAX_UPLOAD_BYTES + 1), "more than 10 MB"),
    ],
    ids=["empty", "text", "svg", "other format", "cut png", "cut jpeg", "large", "larger", "bomb", "bytes"],
)
def test_what_cannot_be_used_of_uploads_is_said_in_one_sentence(content, complaint):
    with pytest.raises(ValueError, match=complaint):
        pictures.uploaded_picture(content)


def test_a_folder_gives_the_pictures_that_are_named_after_their_ids_and_nothing_outside_of_it(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "a.png", folder / "deep" / "b.jpg", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(path)
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    wanted = ["a", "b.jpg", "deep/b", "../secret", "../secret.png", str(tmp_path / "secret.png"), "link", "absent"]
    found = pictures.pictures_in_folder(folder, wanted)
    assert [name for name in wanted if found.data_uri(name) is not None] == ["a", "b.jpg", "deep/b"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        pictures.pictures_in_folder(tmp_path / "absent", wanted)


def test_pictures_of_data_are_those_of_the_split_first_and_a_broken_one_is_left_out():
    test, train = PictureSource(1, 4, broken=(2,)), PictureSource(1, 6, first=2)
    names = {image.image_id for source in (test, train) for image in source.read(0)}
    found = pictures.pictures_of_data({"train": train, "test": test}, names, "test")
    assert len(found) == len(names) == 8
    in_test = [image for image in test.read(0)]
    for image in in_test[:2]:
        assert found.open(image.image_id).tobytes() == image.open().tobytes()
    assert found.data_uri(in_test[2].image_id) is None


def test_pictures_on_the_page_are_small():
    large = Image.new("RGB", (4000, 1000), (200, 30, 30))
    uri = pictures.data_uri(large)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 20_000
    assert large.size == (4000, 1000)
    assert pictures.data_uri(NOISE).startswith("data:image/png;base64,")


# Rankings and sets


def test_a_prompt_is_ranked_among_the_calibration_captions(gallery, case):
    split = loading.sampled(EmbeddingStore(case.model / "embeddings").split("validation"), len(gallery.images))
    with torch.no_grad():
        known = 1 / gallery.model(text_features=split.text_features[:]).concentration
        inputs = gallery.processor(text=["red 3", "red"], padding=True, return_tensors="pt")
        whole, beginning = 1 / gallery.model(**inputs).concentration
    reading = gallery.read("red 3")
    assert [word.word for word in reading.text.words] == ["red", "3"]
    assert reading.text.uncertainty == pytest.approx(whole.item(), rel=1e-5)
    assert reading.rank == pytest.approx((known < whole).double().mean().item(), abs=0.011)
    assert reading.ranks_so_far[0] == pytest.approx((known < beginning).double().mean().item(), abs=0.011)
    assert reading.ranks_so_far[-1] == reading.rank


def test_pictures_and_captions_are_ranked_by_the_posterior_of_the_model(gallery, case):
    split = EmbeddingStore(case.model / "embeddings").split("test")
    with torch.no_grad():
        inputs = gallery.processor(text=["red 3"], padding=True, return_tensors="pt")
        output = gallery.model(**inputs, image_features=split.image_features[:])
        expected = output.logits_per_text[0].double().softmax(0)
    ranking = gallery.find_pictures("red 3", 0.1).ranking
    by_id = dict(zip(split.image_ids, expected.tolist(), strict=True))
    assert ranking.total == len(by_id) == len(ranking.labels)
    assert ranking.posterior == pytest.approx([by_id[image_id] for image_id in ranking.labels], rel=1e-4)
    assert (np.diff(ranking.posterior) <= 0).all()

    captions = list(dict.fromkeys(split.captions))
    picture = gallery.pictures.open(split.image_ids[3])
    with torch.no_grad():
        inputs = gallery.processor(text=captions, images=picture, padding=True, return_tensors="pt")
        expected = gallery.model(**inputs).logits_per_image[0].double().softmax(0)
    ranking = gallery.find_captions(picture, 1000)
    assert ranking.total == len(captions) < len(split.captions)
    by_caption = dict(zip(captions, expected.tolist(), strict=True))
    assert ranking.posterior == pytest.approx([by_caption[caption] for caption in ranking.labels], rel=1e-4)


def test_sets_hold_the_right_picture_as_often_as_they_promise(case):
    """On the calibration pairs themselves, of which a set may miss a little less than alpha, in every stratum."""
    model, processor = loading.open_model(str(case.model))
    split = EmbeddingStore(case.model / "embeddings").split("validation")
    own = gallery_module.Gallery(model, processor, split, split, pictures.Pictures({}), reference=split)
    for alpha in (0.05, 0.2):
        answers = [own.find_pictures(caption, alpha) for caption in split.captions]
        held = [
            image_id in answer.ranking.labels[: answer.size]
            for image_id, answer in zip(split.image_ids, answers, strict=True)
        ]
        # Rounding may take the one caption of each stratum that lies on the threshold.
        assert np.mean(held) >= 1 - alpha - gallery_module.NUM_STRATA / len(held)
        assert np.mean([answer.size for answer in answers]) < len(held)
    assert {answer.is_stratified for answer in answers} == {True}
    assert sum({answer.num_calibration for answer in answers}) <= len(held)


def test_few_calibration_pictures_give_no_strata_and_refuse_what_they_cannot_promise(case):
    few = loading.open_gallery(str(case.model), None, None, None, gallery_size=12)
    answer = few.find_pictures("red 3", 0.1)
    assert not answer.is_stratified and answer.num_calibration == answer.ranking.total == 12
    with pytest.raises(ValueError, match="12 independent calibration queries cannot promise a coverage of 0.95"):
        few.find_pictures("red 3", 0.05)


def test_a_calibration_beside_the_checkpoint_tells_what_is_known_of_a_prompt(case, gallery, tmp_path):
    assert gallery.trust is None and gallery.read("red 3").confidence is None
    assert gallery.find_pictures("red 3", 0.1).ranking.presence is None
    folder = shutil.copytree(case.model, tmp_path / "model")
    calibration = make_calibration(gallery.model)
    calibration.save_pretrained(folder)
    own = loading.open_gallery(str(folder), None, None, None, gallery_size=100)
    assert own.trust.identity == calibration.identity
    report = calibration.text_report(backbone_features(own.model, tokenize_texts(own.processor, "red 3")))
    known = own.read("red 3").confidence
    assert known.fits_about == pytest.approx(report.fits_about[0], rel=1e-4)
    assert known.typicality == pytest.approx(report.typicality[0])
    assert (known.num_reference_images, known.gallery_size) == (80, 40)
    assert (known.probability is None) == (known.reason is not None)
    ranking = own.find_pictures("red 3", 0.1).ranking
    split = EmbeddingStore(folder / "embeddings").split("test")
    index = ImageIndex.from_split(own.model, split, calibration=calibration)
    found = index.search(encode_texts(own.model, own.processor, "red 3"), k=len(index))
    assert ranking.labels == found.labels[0]
    for one, all_found in ((ranking.presence, found.presence), (ranking.confidence, found.confidence)):
        assert one == (None if all_found is None else pytest.approx(all_found[0]))


def test_a_calibration_of_another_head_is_refused(case, tmp_path):
    folder = shutil.copytree(case.model, tmp_path / "model")
    other = AsymVLMModel(AsymVLMConfig(projection_dim=24, hidden_size=8)).eval()
    make_calibration(other).save_pretrained(folder)
    with pytest.raises(ValueError, match="other head weights"):
        loading.open_gallery(str(folder), None, None, None, gallery_size=100)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("red " * 126, "504 characters"),
        ("red " * 20, "context of the backbone is 16"),
    ],
)
def test_prompts_that_say_nothing_or_too_much_are_refused(gallery, prompt, complaint):
    for ask in (gallery.read, lambda text: gallery.find_pictures(text, 0.1)):
        with pytest.raises(ValueError, match=complaint):
            ask(prompt)


# HTML


HOSTILE = "<script>alert('x')</script>"


def test_what_people_and_data_brought_is_escaped():
    ranking = gallery_module.Ranking([HOSTILE, '" onerror="x'], np.log([0.9, 0.1]), np.array([0.1, np.inf]), 2)
    shown = rendering.pictures_html(
        gallery_module.PictureSet(ranking, 1, 0.1, 20, False), pictures.Pictures({}), shown=2
    )
    shown += rendering.captions_html("data:,", ranking) + rendering.message(HOSTILE)
    word = rendering.WordUncertainty(HOSTILE, 0, len(HOSTILE), None, None)
    reading = gallery_module.PromptReading(gallery_module.TextUncertainty(HOSTILE, 0.1, (word,)), 0.5, [0.5])
    shown += rendering.prompt_html(reading, 10)
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 4
    assert '" onerror' not in shown


def shown_reading(**changes) -> str:
    known = {"probability": 0.42, "interval": (0.3, 0.55), "reason": None, "gallery_size": 1000}
    known |= {"fits_about": 12.4, "num_reference_images": 8192, "typicality": 0.5, **changes}
    word = rendering.WordUncertainty("red", 0, 3, None, None)
    text = gallery_module.TextUncertainty("red", 0.1, (word,))
    return rendering.prompt_html(
        gallery_module.PromptReading(text, 0.5, [0.5], gallery_module.PromptConfidence(**known)), 10
    )


def test_what_is_known_of_a_prompt_stands_before_its_concentration():
    shown = shown_reading()
    assert "1/κ, a learned concentration" in shown and "Unlike" not in shown
    assert "right in about <b>42 %</b> (30–55 %), among 1,000 pictures" in shown
    assert "Fits about <b>12</b> of 8,192 reference pictures" in shown
    assert shown.index("right in about") < shown.index("1/κ")
    unlike = shown_reading(typicality=0.01)
    assert 0 < unlike.index("Unlike the training captions (p = 0.01)") < unlike.index("right in about")
    untrusted = shown_reading(probability=None, interval=None, reason=HOSTILE)
    assert "is not known: &lt;script&gt;" in untrusted and "right in about" not in untrusted


@pytest.mark.parametrize(
    ("presence", "confidence", "text"),
    [
        (None, None, None),
        (0.3, 0.9, "Nothing in this gallery seems to match (probability that the picture meant is here, 30 %)"),
        (0.8, None, "Probability that the picture meant is here, 80 %."),
        (0.8, 0.6, "Probability that the picture meant is here, 80 %; that, if so, it is the first one, 60 %."),
    ],
)
def test_a_gallery_without_a_match_says_so(presence, confidence, text):
    ranking = gallery_module.Ranking(["a", "b"], np.log([0.6, 0.4]), np.full(2, 0.1), 2, confidence, presence)
    answer = gallery_module.PictureSet(ranking, 1, 0.2, 20, True)
    shown = rendering.pictures_html(answer, pictures.Pictures({}), shown=2)
    if text is None:
        assert "picture meant is here" not in shown
    else:
        assert text in shown and shown.index(text) < shown.index("pictures</b> are in the set")
    assert ("Nothing in this gallery" in shown) == (presence == 0.3)


def test_the_set_is_marked_and_counted():
    ranking = gallery_module.Ranking(["a", "b", "c"], np.log([0.6, 0.3, 0.1]), np.full(3, 0.1), 3)
    for size, text in ((2, "<b>2 of 3 pictures</b>"), (3, "of which the first 2 are shown"), (0, "<b>No picture</b>")):
        answer = gallery_module.PictureSet(ranking, size, 0.2, 20, True)
        shown = rendering.pictures_html(answer, pictures.Pictures({}), shown=2)
        assert text in shown and "at least 80 % of prompts about as uncertain as this one" in shown
        assert shown.count('class="card inside"') == min(size, 2)
        assert "60.0 %" in shown and "10.0 %" not in shown


def test_figures_keep_their_digits():
    assert [rendering.number(value) for value in (0.37254, 0.001, 2.5e-5, np.inf)] == [
        "0.3725",
        "0.0010",
        "2.5e-05",
        "∞",
    ]
