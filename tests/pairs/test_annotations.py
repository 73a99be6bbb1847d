"""Annotation files of COCO, Karpathy and Flickr: what they leave out and what is refused."""

import json
import logging

import pytest

from modeling_asymvlm.pairs.layouts import load_pairs
from tests.support import layouts
from tests.support.layouts import CAPTIONS


def load(path):
    return load_pairs(str(path), held_out_fraction=0.25)


def edit(file, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_karpathys_restval_is_training_data(tmp_path):
    sources = load(layouts.karpathy_coco(tmp_path / "data"))
    ids = {name: [image.image_id for image in source.read(0)] for name, source in sources.items()}
    assert ids["train"] == [f"val2014/{number}.png" for number in range(4)]
    assert ids["validation"] == ["val2014/4.png", "val2014/5.png"]
    assert ids["test"] == ["val2014/6.png", "val2014/7.png"]


def test_the_splits_of_coco_and_of_flickr30k_are_kept(tmp_path):
    for layout, sizes in ((layouts.coco_folder, (3, 3, 2)), (layouts.flickr30k_annotations, (4, 2, 2))):
        sources = load(layout(tmp_path / layout.__name__))
        assert tuple(sources[name].num_images for name in ("train", "validation", "test")) == sizes


@pytest.mark.parametrize("layout", [layouts.coco_file, layouts.karpathy_coco])
def test_images_without_captions_are_left_out_and_counted(layout, tmp_path, monkeypatch):
    file = layout(tmp_path / "data")

    def without_captions_of_the_first_two(content) -> None:
        if "annotations" in content:
            content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in (100, 101)]
        else:
            for image in content["images"][:2]:
                image["sentences"] = []

    edit(file, without_captions_of_the_first_two)
    messages = []
    monkeypatch.setattr(logging.getLogger("modeling_asymvlm.pairs.annotations"), "warning", messages.append)
    sources = load(file)
    assert sum(source.num_images for source in sources.values()) == len(CAPTIONS) - 2
    assert len(messages) == 1 and "2 of " in messages[0] and "have no caption and are left out" in messages[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][3].update(caption=" "), "annotation 30 has an empty caption: ' '"),
        (lambda c: c["annotations"][3].update(caption=["a"]), "annotation 30 has no text"),
        (lambda c: c["annotations"][3].pop("caption"), "annotation 30 has an empty caption: None"),
        (
            lambda c: c["annotations"][3].update(image_id=7),
            "annotation 30 is of image 7, which the file does not name",
        ),
        (lambda c: c["images"].append(c["images"][2]), "image '102' stands there more than once"),
        (lambda c: c["images"][2].pop("file_name"), "an image has no 'file_name'; it has id, width"),
        (lambda c: [one.pop("caption") for one in c["annotations"]], "has annotations without captions"),
    ],
)
def test_annotations_of_coco_that_are_no_pairs_are_named(change, message, tmp_path):
    file = layouts.coco_file(tmp_path / "data")
    edit(file, change)
    with pytest.raises(ValueError, match=f"captions_train2017.json.*{message}"):
        load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1]["sentences"][0].update(raw=""), "a sentence of image '1.png' has an empty caption"),
        (
            lambda c: c["images"][1].update(split="dream"),
            "image 'val2014/1.png' is in a split 'dream'; known are train",
        ),
        (lambda c: c["images"][1].pop("split"), "an image has no 'split'"),
        (lambda c: [image.update(split="test") for image in c["images"]], "no image is in the split train"),
    ],
)
def test_images_of_karpathy_that_are_no_pairs_are_named(change, message, tmp_path):
    file = layouts.karpathy_coco(tmp_path / "data")
    edit(file, change)
    with pytest.raises(ValueError, match=f"dataset_coco.json.*{message}"):
        load(file)


@pytest.mark.parametrize("path", ["../secret.png", "/secret.png"])
def test_paths_in_annotations_do_not_lead_out_of_the_images(path, tmp_path):
    file = layouts.coco_file(tmp_path / "data")
    edit(file, lambda content: content["images"][5].update(file_name=path))
    sources = load(file)
    with pytest.raises(ValueError, match="the image '.*secret.png' does not lie in the folder of images"):
        for source in sources.values():
            list(source.read(0))


@pytest.mark.parametrize(
    ("layout", "name", "line", "message"),
    [
        (layouts.flickr30k_bars, "results.csv", "1.png| 3| ", "line 18 has an empty caption"),
        (layouts.flickr30k_bars, "results.csv", "1.png no bar", "line 18 is not image_name"),
        (layouts.flickr8k_commas, "captions.txt", '"1.png",""', "line 18 has an empty caption"),
        (layouts.flickr8k_commas, "captions.txt", "1.png,a, b", "line 18 is not image,caption.*Put it in quotes"),
        (layouts.flickr8k_tokens, "Flickr8k.token.txt", "1.png#3\t", "line 17 has an empty caption"),
        (layouts.flickr8k_tokens, "Flickr8k.token.txt", "1.png#3 no tab", "line 17 is not image#number, a tab"),
        (layouts.flickr30k_annotations, "flickr_annotations_30k.csv", "a,b,test,1.png,1", "raw must be a JSON list"),
        (layouts.flickr30k_annotations, "flickr_annotations_30k.csv", '"[""""]",b,test,1.png,1', "an empty caption"),
    ],
)
def test_lines_of_flickr_that_are_no_pairs_are_named(layout, name, line, message, tmp_path):
    layout(tmp_path / "data")
    file = tmp_path / "data" / name
    file.write_text(file.read_text().rstrip("\r\n") + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        load(file)


def test_a_truncated_annotation_file_is_named(tmp_path):
    file = layouts.coco_file(tmp_path / "data")
    file.write_text(file.read_text()[:-40])
    with pytest.raises(ValueError, match="captions_train2017.json cannot be read: .*Download it again"):
        load(file)


def test_a_folder_with_two_annotation_files_of_one_split_is_ambiguous(tmp_path):
    folder = layouts.coco_folder(tmp_path / "data")
    layouts.write_json(folder / "annotations" / "captions_train2014.json", layouts.coco_content(["0.png"]))
    with pytest.raises(ValueError, match="captions_train2014.json and captions_train2017.json, which are one split"):
        load(folder)
    layouts.flickr8k_commas(tmp_path / "flickr")
    layouts.karpathy_flickr(tmp_path / "flickr")
    with pytest.raises(ValueError, match="holds dataset_flickr8k.json and captions.txt: name one of them"):
        load(tmp_path / "flickr")


def test_a_missing_image_is_found_when_it_is_opened(tmp_path):
    file = layouts.coco_file(tmp_path / "data")
    (tmp_path / "data" / "train2017" / "3.png").unlink()
    images = [image for source in load(file).values() for image in source.read(0)]
    (missing,) = [image for image in images if image.image_id == "103"]
    with pytest.raises(ValueError, match="Image '3.png' cannot be read: .*No such file"):
        missing.open()
