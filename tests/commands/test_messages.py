"""What commands say of mistakes: every flag that they advise is one that they take, and no argument of the library
stays untranslated."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.__main__ import main
from modeling_asymvlm.commands import convert, demo, example, publish, search, train, triage
from modeling_asymvlm.store.embedding_store import EmbeddingStore
from tests.support import layouts
from tests.support.tiny_models import make_tiny_clip, make_tiny_processor
from tests.support.training import make_pairs


TRAINING_FLAGS = set(train.command_parser()._option_string_actions)
TAKEN = {
    "train": TRAINING_FLAGS,
    "evaluate": TRAINING_FLAGS,
    "example": TRAINING_FLAGS - example.NOT_TAKEN,
    "triage": set(triage.command_parser()._option_string_actions),
    "publish": set(publish.command_parser()._option_string_actions),
    "convert": set(convert.command_parser()._option_string_actions),
    "search": set(search.command_parser()._option_string_actions),
    "demo": set(demo.command_parser()._option_string_actions),
}

FLAG_IN_FILE = "--embeddings"

# Arguments that a message leaves as they are, for it says whose they are.
OF_ANOTHER_COMMAND = {"triage": {"embeddings"}}


def rows(*values: dict) -> Callable[[Path], Path]:
    """A writer of eight pictures and a folder of one table of these rows."""

    def write(folder: Path) -> Path:
        layouts.write_pictures(folder)
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, values)))
        return folder

    return write


def without_images(folder: Path) -> Path:
    file = layouts.coco_file(folder)
    for picture in folder.rglob("*.png"):
        picture.unlink()
    return file


def nothing(folder: Path) -> Path:
    folder.mkdir()
    return folder


def clip_retrieval(folder: Path) -> Path:
    (folder / "img_emb").mkdir(parents=True)
    return folder


def broken_parquet(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.parquet").write_text("no table")
    return folder


def no_layout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pairs.txt").write_text("x")
    return folder / "pairs.txt"


GOOD = {"image": "0.png", "caption": "red"}
MORE = [{"image": f"{number}.png", "caption": "red"} for number in range(1, 4)]
BAD_DATA = [
    (nothing, []),
    (clip_retrieval, []),
    (broken_parquet, []),
    (no_layout, []),
    (without_images, []),
    (rows({"photo": "0.png", "caption": "red"}, *MORE), []),
    (rows({"image": "0.png", "title": "red"}), []),
    (rows(GOOD, {"image": "1.png", "caption": " "}, *MORE), []),
    (rows({"image": 3, "caption": "red"}, {"image": 4, "caption": "red"}), []),
    (rows(GOOD, {"image": None, "caption": "red"}, *MORE), []),
    (rows({**GOOD, "image_id": 0.5}, {**GOOD, "image_id": 1.5}), []),
    (rows(GOOD), []),
    (layouts.coco_file, ["--image_column", "photo"]),
    (layouts.karpathy_coco, ["--caption_column", "text"]),
    (layouts.one_tar, ["--image_id_column", "id"]),
    (layouts.json_lines, ["--caption_column", "title"]),
    (layouts.json_lines, ["--image_folder", "nowhere"]),
]
BAD_DATA_OF_TRAINING = [
    (rows(GOOD, *MORE[:1]), []),
    (rows(GOOD, *MORE), ["--image_folder", "."]),
    (rows(GOOD, MORE[0], GOOD, *MORE), ["--streaming"]),
    (layouts.json_lines, ["--dataset_config_name", "plain"]),
    (layouts.saved_data_set, ["--streaming"]),
]
BAD_ARGUMENTS = {
    "train": [
        ["--distribution", "gauss"],
        ["--held_out_fraction", "0.7"],
        ["--embedding_batch_size", "0"],
        ["--embeddings", "a", "--dataset_name_or_path", "b"],
        ["--dataset_name_or_path", "a/b"],
        ["--image_folder", "./nowhere"],
        ["--streaming", "true"],
        ["--model_name_or_path", "/no/model"],
        ["--hidden_dropout_prob", "1.5"],
        ["--tile_size", "0"],
        ["--push_to_hub", "true"],
        ["--do_eval"],
        ["--resume_from_checkpoint", "nowhere"],
    ],
    "evaluate": [[], ["--model_name_or_path", "STORE_HEAD"], ["--model_name_or_path", "BACKBONE"]],
    "example": [
        ["--embeddings", "a"],
        ["--image-folder", "."],
        ["--streaming"],
        ["--model_name_or_path", "a/b"],
        ["arguments.yaml"],
        ["--distribution", "gauss"],
        ["--held_out_fraction", "0.7"],
    ],
    "triage": [
        ["captions.csv", "--model", "MODEL", "--caption_column", "title"],
        ["captions.csv", "--model", "MODEL", "--image_id_column", "title"],
        ["captions.csv", "--model", "MODEL", "--image_column", "photo"],
        ["captions.csv", "--model", "BACKBONE"],
        ["nowhere.csv", "--model", "MODEL"],
        ["captions.csv", "--model", "MODEL", "--output", "report.txt"],
        ["captions.csv", "--model", "MODEL", "--batch_size", "0"],
        ["captions.csv"],
    ],
    "publish": [
        ["MODEL"],
        ["MODEL", "--repo_id", "name"],
        ["MODEL", "--repo_id", "me/model", "--output", "upload"],
        ["MODEL", "--repo_id", "me/model"],
        ["BACKBONE", "--repo_id", "me/model"],
        ["nowhere", "--repo_id", "me/model"],
    ],
    "convert": [
        ["nowhere", "store"],
        ["captions", "store", "--held_out_fraction", "0.7"],
        ["captions", "MODEL"],
        ["FEATURES", "store"],
        ["FEATURES", "store", "--image_id_column", "title"],
        ["FEATURES", "store", "--held_out_fraction", "many"],
    ],
    "search": [
        ["--model", "MODEL"],
        ["red", "--model", "MODEL"],
        ["red", "--model", "MODEL", "--embeddings", "STORE", "--split", "other"],
        ["red", "--model", "MODEL", "--images", "nowhere"],
        ["red", "--model", "MODEL", "--images", "FEATURES"],
        ["red", "--model", "MODEL", "--index", "STORE"],
        ["red", "--model", "MODEL", "--index", "i", "--save_index", "j"],
        ["red", "--model", "MODEL", "--images", "FEATURES", "--index", "i"],
        ["red", "--model", "STORE_HEAD", "--embeddings", "STORE"],
        ["red", "--model", "nowhere"],
        ["red", "--model", "MODEL", "-k", "0"],
    ],
    "demo": [
        ["--model", "nowhere"],
        ["--model", "MODEL"],
        ["--model", "STORE_HEAD", "--embeddings", "STORE"],
        ["--gallery_size", "1"],
        ["--modell", "MODEL"],
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a backbone, a model on it, a head alone, and a table of captions."""
    place = tmp_path_factory.mktemp("place")
    for name, model in (("BACKBONE", make_tiny_clip()), ("MODEL", AsymVLMModel.from_vlm_pretrained(make_tiny_clip()))):
        model.save_pretrained(place / name)
        make_tiny_processor().save_pretrained(place / name)
    AsymVLMModel(AsymVLMModel.config_class(projection_dim=24)).save_pretrained(place / "STORE_HEAD")
    splits = {split: make_pairs(seed, 4, 8).split for seed, split in enumerate(("train", "validation", "test"))}
    EmbeddingStore.write(place / "STORE", splits, {})
    (place / "captions.csv").write_text("caption\nred 3\npicture\n")
    (place / "arguments.yaml").write_text(f"{FLAG_IN_FILE.removeprefix('--')}: STORE\n")
    for part in ("img_emb", "text_emb"):
        (place / "FEATURES" / part).mkdir(parents=True)
        np.save(place / "FEATURES" / part / f"{part}_0.npy", np.ones((3, 4), dtype=np.float32))
    return place


def message_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    assert left.value.code == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{arguments[0]}: error: "))


def check(message: str, command: str, arguments: list) -> None:
    own = {str(word).partition("=")[0].replace("-", "_").replace("__", "--", 1) for word in arguments}
    own |= {FLAG_IN_FILE} if "arguments.yaml" in arguments else set()
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", message))
    assert flags - own <= TAKEN[command], message
    named = set(re.findall(r"(?<![\w.(-])([a-z][a-z_]+)=(?![\w\"'])", message))
    assert named <= OF_ANOTHER_COMMAND.get(command, set()), message


@pytest.mark.parametrize(
    ("command", "arguments"), [(name, arguments) for name, table in BAD_ARGUMENTS.items() for arguments in table]
)
def test_wrong_arguments_are_answered_with_flags_of_the_command(command, arguments, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    check(message_of(capsys, command, *arguments), command, arguments)


@pytest.mark.parametrize("command", ["train", "evaluate", "triage"])
def test_bad_data_are_answered_with_flags_of_the_command(command, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    said = set()
    for number, (write, options) in enumerate(BAD_DATA + (BAD_DATA_OF_TRAINING if command != "triage" else [])):
        data = write(tmp_path / str(number))
        if command == "triage":
            arguments = [str(data), "--model", "MODEL", *options]
        else:
            model = "MODEL" if command == "evaluate" else "BACKBONE"
            arguments = ["--model_name_or_path", model, "--dataset_name_or_path", str(data), *options]
            arguments += ["--output_dir", str(tmp_path / f"out-{number}")]
        message = message_of(capsys, command, *arguments)
        check(message, command, arguments)
        said.add(message)
    assert len(said) > 12 and any("--image_folder" in message for message in said)
    assert any("--image_column" in message for message in said)
