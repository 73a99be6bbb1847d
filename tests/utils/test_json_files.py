"""JSON that is whole or absent, legible, and refused by name where it is damaged."""

import json
import os

import pytest

from modeling_asymvlm.utils.json_files import read_json, write_json


CONTENTS = [
    {"a": [1, -2.5, True, None, "Müller → 犬"], "b": {}},
    [],
    "text",
    0.1 + 0.2,
    float("inf"),
    {"name of a file that is no UTF-8": os.fsdecode(b"caf\xe9.png")},
]


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_written_is_read(content, tmp_path):
    write_json(tmp_path / "it.json", ["what was there before"])
    write_json(tmp_path / "it.json", content)
    assert read_json(tmp_path / "it.json") == read_json(str(tmp_path / "it.json")) == content
    assert json.loads((tmp_path / "it.json").read_text(encoding="utf-8")) == content
    assert os.listdir(tmp_path) == ["it.json"]


def test_letters_stay_legible(tmp_path):
    write_json(tmp_path / "it.json", ["Müller"])
    assert (tmp_path / "it.json").read_bytes() == '[\n  "Müller"\n]\n'.encode()


@pytest.mark.parametrize(("content", "error"), [(object(), TypeError), ([float("nan")], ValueError)])
def test_what_cannot_be_written_leaves_what_was_there(content, error, tmp_path):
    write_json(tmp_path / "it.json", 1)
    with pytest.raises(error):
        write_json(tmp_path / "it.json", content, allow_nan=False)
    assert read_json(tmp_path / "it.json") == 1 and os.listdir(tmp_path) == ["it.json"]


def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    write_json(tmp_path / "it.json", 1)
    monkeypatch.setattr("modeling_asymvlm.utils.durable_files.move_into_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "it.json", 2)
    assert read_json(tmp_path / "it.json") == 1 and os.listdir(tmp_path) == ["it.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"a": ', "is not JSON: Expecting value"),
        (b"{} {}", "is not JSON: Extra data"),
        (b'"caf\xe9"', "is not JSON: 'utf-8' codec"),
        (b"[" * 200_000 + b"]" * 200_000, "is nested too deeply"),
    ],
)
def test_damaged_files_are_named_with_the_remedy(content, message, tmp_path):
    (tmp_path / "it.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"it\.json' {message}.*Restore it, or make it again\."):
        read_json(tmp_path / "it.json")
    with pytest.raises(ValueError, match=rf"it\.json' {message}.*Download it again\.$"):
        read_json(tmp_path / "it.json", remedy="Download it again.")


def test_files_beyond_the_bound_are_not_parsed(tmp_path):
    (tmp_path / "it.json").write_text("[1, 2]")
    assert read_json(tmp_path / "it.json", max_bytes=6) == [1, 2]
    with pytest.raises(ValueError, match=r"it\.json' is larger than 5 bytes.*Restore it"):
        read_json(tmp_path / "it.json", max_bytes=5)


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "it.json")
