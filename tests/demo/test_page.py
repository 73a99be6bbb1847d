"""The page itself: what it opens, the arguments it takes, and what it says."""

import configparser
import shutil

import pytest
import torch


pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel  # noqa: E402
from modeling_asymvlm.commands import demo as app
from modeling_asymvlm.demo import loading
from modeling_asymvlm.demo import page as page_module
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from tests.support.demo_cases import FOLDER, make_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def gallery(case):
    return loading.open_gallery(str(case.model), None, str(case.data), None, gallery_size=100)


# Opening


def opened(case, **changes):
    names = {"model_name": str(case.model), "embeddings": None, "dataset": str(case.data), "image_folder": None}
    return loading.open_gallery(**{**names, "gallery_size": 100, **changes})


def test_a_gallery_has_as_many_pictures_as_there_are_to_calibrate_with(case):
    assert len(opened(case).images) == len(opened(case).pictures) == 30
    few = opened(case, gallery_size=20)
    assert len(few.images) == few.num_calibration == len(few.image_ids) == 20


def test_pictures_come_from_a_folder_or_from_nowhere(case):
    split = EmbeddingStore(case.model / "embeddings").split("test")
    with pytest.raises(ValueError, match="None of the 30 pictures of the gallery, such as 'picture-"):
        opened(case, dataset=None, image_folder=str(case.data / "images"))
    named = case.data.parent / "named"
    shutil.copytree(case.data / "images", named, dirs_exist_ok=True)
    for file in list(named.glob("[0-9]*.png")):
        file.rename(file.with_name(f"picture-{file.name}"))
    image_id = split.image_ids[0]
    from_folder = opened(case, dataset=None, image_folder=str(named)).pictures.open(image_id)
    assert from_folder.tobytes() == opened(case).pictures.open(image_id).tobytes()
    assert len(opened(case, dataset=None).pictures) == 0


def test_a_gallery_without_pictures_says_why(case, gallery):
    without = page_module._header(opened(case, dataset=None))
    assert "nothing says where the pictures are" in without and "--dataset" in without
    some = opened(case)
    some.pictures = type(some.pictures)(dict(list(some.pictures._images.items())[:10]))
    assert "20 of 30 pictures are not in the data" in page_module._header(some)
    assert 'role="alert"' not in page_module._header(gallery)


def test_a_sampled_split_keeps_what_belongs_together():
    torch.manual_seed(0)
    owner = torch.randint(0, 20, (70,))
    split = EmbeddingSplit(
        [str(row) for row in range(20)],
        torch.randn(20, 4),
        [f"{row} of {image}" for row, image in enumerate(owner.tolist())],
        torch.arange(70.0)[:, None].expand(70, 4),
        owner,
    )
    few = loading.sampled(split, 8)
    assert len(set(few.image_ids)) == 8
    assert len(few.captions) == sum(str(image) in few.image_ids for image in owner.tolist())
    for row, caption in enumerate(few.captions):
        number, _, image = caption.split()
        assert few.image_ids[few.text_image_index[row]] == image
        assert few.text_features[row, 0] == float(number)
    for row, image_id in enumerate(few.image_ids):
        assert torch.equal(few.image_features[row], split.image_features[int(image_id)])
    assert loading.sampled(split, 20) is split


def test_what_does_not_fit_together_is_named_with_the_remedy(case, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DEFAULT_MODEL", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="Make it with `asymvlm example`") as absent:
        opened(case, model_name=None)
    said = app.command_parser().in_flags(str(absent.value))
    assert "name another with --model, and its features and pictures with --embeddings and --dataset." in said
    with pytest.raises(ValueError, match="at least 2 pictures"):
        opened(case, gallery_size=1)
    without_features = shutil.copytree(case.model, tmp_path / "bare", ignore=shutil.ignore_patterns("embeddings"))
    with pytest.raises(FileNotFoundError, match="with embeddings="):
        opened(case, model_name=str(without_features))
    with pytest.raises(FileNotFoundError, match="no folder of cached features"):
        opened(case, embeddings=str(tmp_path / "no" / "store"))
    store = EmbeddingStore(case.model / "embeddings")
    EmbeddingStore.write(tmp_path / "one", {"test": store.split("test")}, {})
    with pytest.raises(ValueError, match="has no split validation"):
        opened(case, embeddings=str(tmp_path / "one"))
    wide = EmbeddingSplit(["a"], torch.randn(1, 7), ["x", "y"], torch.randn(2, 7), torch.zeros(2, dtype=torch.long))
    EmbeddingStore.write(tmp_path / "wide", {"test": wide, "validation": wide}, {})
    with pytest.raises(ValueError, match="7 wide, but .* takes 24: they come from another backbone"):
        opened(case, embeddings=str(tmp_path / "wide"))
    AsymVLMModel(AsymVLMConfig(projection_dim=24)).save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match="head without a backbone"):
        opened(case, model_name=str(tmp_path / "head"))
    backbone = case.model.parent / "backbone"
    deterministic = AsymVLMModel.from_vlm_pretrained(backbone, distribution="deterministic", hidden_size=8)
    deterministic.save_pretrained(tmp_path / "deterministic", save_backbone=True)
    with pytest.raises(ValueError, match="deterministic' with .* has no concentration, and so no uncertainty"):
        opened(case, model_name=str(tmp_path / "deterministic"))


# Arguments


def test_it_serves_this_machine_alone_unless_told_otherwise(monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "ASYMVLM_MODEL", "ASYMVLM_GALLERY_SIZE"):
        monkeypatch.delenv(name, raising=False)
    options = app.parse_arguments([])
    assert (options.host, options.port, options.model, options.gallery_size) == ("127.0.0.1", None, None, 2000)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("ASYMVLM_MODEL", "me/model")
    monkeypatch.setenv("ASYMVLM_GALLERY_SIZE", "50")
    options = app.parse_arguments([])
    assert (options.host, options.model, options.gallery_size) == ("0.0.0.0", "me/model", 50)
    options = app.parse_arguments(["--host", "127.0.0.2", "--model", "other", "--port", "80"])
    assert (options.host, options.port, options.model) == ("127.0.0.2", 80, "other")


@pytest.mark.parametrize("arguments", [["--share"], ["--port", "many"], ["--gallery_size", "1"]])
def test_mistakes_end_in_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        app.main(arguments)
    said = str(exit_.value) + capsys.readouterr().err
    assert exit_.value.code != 0 and said.count("demo: error: ") == 1 and "Traceback" not in said


# As a Space


def test_a_space_requires_what_the_package_and_its_extra_demo_do():
    setup = configparser.ConfigParser()
    setup.read(FOLDER.parent / "setup.cfg")
    extras = setup["options.extras_require"]
    required, waiting = set(setup["options"]["install_requires"].split()), ["demo"]
    while waiting:
        lines = set(extras[waiting.pop()].split())
        own = {line for line in lines if line.startswith("modeling-asymvlm")}
        required |= lines - own
        waiting += [extra for line in own for extra in line.partition("[")[2].rstrip("]").split(",")]
    listed = (FOLDER / "requirements.txt").read_text().split()
    assert "faiss-cpu>=1.15" in required and listed == sorted(required)


# Answers


def test_mistakes_of_visitors_are_said_on_the_page(gallery):
    answers = page_module.Answers(gallery)
    for prompt in ("", "red " * 20, "x" * 501):
        reading, found = answers.prompt(prompt, 0.1)
        assert 'role="alert"' in reading and found == ""
    reading, found = answers.prompt("red 3", 0.1)
    assert 'class="uncertainty"' in reading and found.count("<img") == page_module.PICTURES_SHOWN
    assert 'role="alert"' in answers.upload(b"no picture") and 'class="captioned"' in answers.example()


def test_a_wider_promise_gives_no_smaller_set(gallery):
    sizes = [gallery.find_pictures("red 3", alpha).size for alpha in (0.05, 0.1, 0.2)]
    assert sizes == sorted(sizes, reverse=True)
