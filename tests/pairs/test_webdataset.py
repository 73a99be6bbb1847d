"""Webdataset shards: samples as they are written in the world, damaged files, names that lead astray."""

import json
import logging
import tarfile

import pytest

from modeling_asymvlm.pairs.held_out import HashRange
from modeling_asymvlm.pairs.webdataset import TarPairs
from tests.support.layouts import picture, write_tar


def read(file, **options) -> list:
    source = TarPairs([file], **options)
    return [image for part in range(source.num_parts) for image in source.read(part)]


def sample(key: str, number: int = 1, **members: str | dict) -> dict[str, bytes]:
    texts = {
        f"{key}.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in members.items()
    }
    return {f"{key}.png": picture(number), **{name: text.encode() for name, text in texts.items()}}


def test_captions_come_from_lines_or_json(tmp_path):
    members = {
        **sample("a/0", 1, txt="one\n two \n"),
        **sample("a/1", 2, json={"caption": "three", "url": "x", "width": 3}),
        **sample("a/2", 3, json={"captions": ["four", "five"]}, npy="ignored"),
        **sample("a/3", 4, json={"caption": "no"}, txt="six"),
    }
    images = read(write_tar(tmp_path / "00000.tar", members))
    assert [image.captions for image in images] == [["one", "two"], ["three"], ["four", "five"], ["six"]]
    assert [image.image_id for image in images] == [f"00000/a/{number}" for number in range(4)]
    assert [image.open().getpixel((0, 0))[0] for image in images] == [6, 12, 18, 24]
    assert images[0].name == "'00000.tar/a/0.png'"
    named = read(tmp_path / "00000.tar", caption_key="url")
    assert [image.captions for image in named] == [["one", "two"], ["x"], ["six"]]


def test_images_without_captions_are_left_out_and_counted(tmp_path, monkeypatch):
    members = {
        **sample("0"),
        **sample("1", txt=""),
        **sample("2", json={"caption": None}, txt=" \n"),
        **sample("3", json={"caption": ""}),
        **sample("4", txt="kept"),
    }
    messages = []
    monkeypatch.setattr(logging.getLogger("modeling_asymvlm.pairs.webdataset"), "warning", messages.append)
    assert [image.image_id for image in read(write_tar(tmp_path / "0.tar", members))] == ["0/4"]
    assert messages == [f"{tmp_path / '0.tar'}: 4 images without a caption are left out."]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.txt": b"a"}, "sample '0' must hold one image .*but holds txt"),
        ({"0.png": b"x", "0.jpg": b"x", "0.txt": b"a"}, "sample '0' must hold one image .*holds png, jpg, txt"),
        ({"0.png": b"x", "0.json": b"{", "0.txt": b"a"}, "sample '0': its .txt or .json cannot be read"),
        ({"0.png": b"x", "0.json": b"[1]"}, "sample '0': its .json must hold an object"),
        ({"0.png": b"x", "0.txt": b"\xff"}, "sample '0': its .txt or .json cannot be read"),
        ({"0.png": b"x", "0.json": b'{"caption": 7}'}, "sample '0' has no text: its .json says 7"),
        ({"0.png": b"x", "0.json": b'{"caption": ["a", " "]}'}, "sample '0' has an empty caption"),
        (
            {"0.png": b"x", "0.txt": b"a", "1.png": b"x", "0.json": b"{}"},
            "the members of sample '0' do not follow one another",
        ),
        ({"0.png": b"x", "0.txt": b"a", "0.PNG": b"x"}, "'0.PNG' stands there more than once"),
    ],
)
def test_samples_that_are_no_pairs_are_named(members, message, tmp_path):
    with pytest.raises(ValueError, match=f"0.tar: {message}"):
        read(write_tar(tmp_path / "0.tar", members))


def test_a_truncated_shard_is_named_wherever_it_ends(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", sample("0", txt="a") | sample("1", txt="b")).read_bytes()
    end = next(size for size in range(512, len(whole), 512) if not any(whole[size:]))
    cut = tmp_path / "cut.tar"
    for size in (0, 1, 300, 512, 700, 1024, 2048, end - 1, end, end + 512):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.tar is truncated or no tar file. Download or make it again"):
            TarPairs([cut])


def test_a_damaged_header_is_an_error_and_no_early_end(tmp_path):
    file = write_tar(tmp_path / "0.tar", sample("0", txt="a") | sample("1", txt="b"))
    with tarfile.open(file) as archive:
        offsets = [member.offset for member in archive]
    for offset in offsets:
        content = bytearray(file.read_bytes())
        content[offset + 120] ^= 0xFF
        (tmp_path / "damaged.tar").write_bytes(content)
        with pytest.raises(ValueError, match="damaged.tar is damaged or truncated"):
            read(tmp_path / "damaged.tar")


def test_names_links_and_folders_in_a_shard_lead_nowhere(tmp_path):
    file = tmp_path / "shards" / "0.tar"
    members = sample("../../escaped", txt="a") | sample("/absolute", 2, txt="b") | sample("._hidden", 3)
    write_tar(file, members)
    with tarfile.open(file, "a") as archive:
        for name, kind in (("2.png", tarfile.SYMTYPE), ("2.txt", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    assert [image.image_id for image in read(file)] == ["0/../../escaped", "0/absolute"]
    assert all(isinstance(image.image, bytes) for image in read(file))
    assert {path.name for path in tmp_path.rglob("*")} == {"shards", "0.tar"}


def test_a_share_is_read_alone(tmp_path):
    members = {}
    for number in range(20):
        members |= sample(f"{number:03}", txt=f"caption {number}")
    file = write_tar(tmp_path / "0.tar", members)
    shares = [HashRange(0, 0.0, 0.3), HashRange(0, 0.3, 1.0)]
    parts = [[image.image_id for image in read(file, share=share)] for share in shares]
    assert all(parts) and sorted(sum(parts, [])) == [f"0/{number:03}" for number in range(20)]
    assert TarPairs([file], share=shares[0]).fingerprint(0) != TarPairs([file]).fingerprint(0)
