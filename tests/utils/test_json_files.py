"""JSON that is whole or absent, legible, and refused by name where it is damaged."""

import json
import os

import pytest

from modeling_asymvlm.utils.json_files import read_json, read_record, write_json, write_record


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


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"a": inner}])
@pytest.mark.parametrize(("depth", "is_read"), [(100, True), (102, False), (700, False)])
def test_depth_is_bounded(nest, depth, is_read, tmp_path):
    content = 1
    for _ in range(depth):
        content = nest(content)
    (tmp_path / "it.json").write_text(json.dumps(content))
    if is_read:
        assert read_json(tmp_path / "it.json") == content
    else:
        with pytest.raises(ValueError, match=r"it\.json' is nested too deeply.*Restore it"):
            read_json(tmp_path / "it.json")


RECORD = {"a": {"3": [1, 2.5, None, float("inf")]}, "name": os.fsdecode(b"caf\xe9"), "text": "Müller"}


def test_a_record_comes_back_and_each_change_of_it_is_refused(tmp_path):
    file = tmp_path / "it.json"
    write_record(file, {**RECORD, "a": {3: (1, 2.5, None, float("inf"))}}, format=4)
    assert read_record(file, format=4) == RECORD
    written = json.loads(file.read_text())
    for change in ({"text": "Miller"}, {"more": 1}, {"checksum": "0" * 64}, {"a": {"3": [1, 2.5, None]}}):
        file.write_text(json.dumps({**written, **change}))
        with pytest.raises(ValueError, match=r"it\.json' is damaged or was changed.*Make it anew\.$"):
            read_record(file, format=4, remedy="Make it anew.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is damaged: it holds no JSON object"),
        ("null", "is damaged: it holds no JSON object"),
        ("{}", "has format None, but this version reads 1"),
        ('{"format": true}', "has format True, but this version reads 1"),
        ('{"format": 1.0}', "has format 1.0, but this version reads 1"),
        ('{"format": "1"}', "has format '1', but this version reads 1"),
        ('{"format": 2, "checksum": ""}', "has format 2, but this version reads 1"),
        ('{"format": 1, "a": 2}', "has no checksum: it is damaged, or of an older version"),
    ],
)
def test_what_is_no_record_of_the_format_is_refused(content, message, tmp_path):
    (tmp_path / "it.json").write_text(content)
    with pytest.raises(ValueError, match=rf"it\.json' {message}.*Restore it"):
        read_record(tmp_path / "it.json", format=1)
