"""Building a store: shard by shard, together, stopped at any time, on a full disk, out of damaged shards."""

import errno
import multiprocessing
import random
import signal
import threading
import time
from pathlib import Path

import datasets
import pytest
import torch

from modeling_asymvlm.store import builder as building
from modeling_asymvlm.store.builder import StoreBuilder
from modeling_asymvlm.store.embedding_store import EmbeddingStore
from tests.support.picture_source import CountingEmbed, PictureSource


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(building, "SECONDS_BETWEEN_LOOKS", 0.01)


def make_builder(path, sources=None, embed=None, backbone="x", **keywords) -> StoreBuilder:
    sources = sources or {"train": PictureSource(3), "test": PictureSource(2, first=100)}
    data = {name: [source.fingerprint(part) for part in range(source.num_parts)] for name, source in sources.items()}
    fingerprint = {"backbone": backbone, "data": data}
    return StoreBuilder(path, sources, fingerprint, embed or CountingEmbed(), dim=4, dtype=torch.float32, **keywords)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store but the note of when its files were looked at."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".verified.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def undisturbed(tmp_path) -> dict[str, bytes]:
    return content(make_builder(tmp_path / "undisturbed").build().path)


def test_each_part_becomes_a_shard_which_the_datasets_library_reads(tmp_path):
    store = make_builder(tmp_path / "store").build()
    assert sorted(file.name for file in (store.path / "captions").iterdir()) == [
        *(f"test-{number:05d}-of-00002.parquet" for number in range(2)),
        *(f"train-{number:05d}-of-00003.parquet" for number in range(3)),
    ]
    split = store.split("train")
    assert split.image_ids == [f"image-{number}" for number in range(15)]
    assert split.captions[4:6] == ["red 2", "picture red 2"]
    assert split.text_image_index.tolist() == [row // 2 for row in range(30)]
    assert split.columns["level"].tolist() == [0, 1] * 15
    assert split.text_features[7:9][:, 0].tolist() == [3.25, 4.0]
    files = {"train": str(store.path / "captions" / "train-*.parquet")}
    read = datasets.load_dataset("parquet", data_files=files, split="train")
    assert read["caption"][:] == list(split.captions)
    assert torch.equal(torch.tensor(read["text_features"][:]), split.text_features[:])
    assert {path.name for path in tmp_path.iterdir()} == {"store", ".store.locks", "datasets-cache"}


def test_a_part_without_images_is_an_empty_shard(tmp_path):
    source = PictureSource(3)
    source.numbers = lambda part: range(5 * part, 5 * part + (0 if part == 0 else 5))
    split = make_builder(tmp_path / "store", {"train": source}).build().split("train")
    assert split.image_ids == [f"image-{number}" for number in range(5, 15)]
    assert split.text_image_index.tolist() == [row // 2 for row in range(20)]
    assert split.columns["level"].tolist() == [0, 1] * 10


def test_a_matching_store_is_used_and_a_change_computes_only_what_it_touches(tmp_path):
    sources = {"train": PictureSource(3)}
    make_builder(tmp_path / "store", sources).build()
    embed = CountingEmbed()
    make_builder(tmp_path / "store", sources, embed).build()
    assert embed.seen == []
    sources["train"].versions[1] = "second"
    store = make_builder(tmp_path / "store", sources, embed).build()
    assert embed.seen == [f"image-{number}" for number in range(5, 10)]
    assert store.split("train").image_ids == [f"image-{number}" for number in range(15)]
    sources["train"] = PictureSource(4)
    sources["train"].versions[1] = "second"
    embed.seen.clear()
    make_builder(tmp_path / "store", sources, embed).build()
    assert embed.seen == [f"image-{number}" for number in range(15, 20)]
    make_builder(tmp_path / "store", sources, embed, backbone="y").build()
    assert len(embed.seen) == 25


def test_a_stopped_build_keeps_its_shards_and_the_old_store(tmp_path, undisturbed):
    old = content(make_builder(tmp_path / "store", backbone="old").build().path)
    (tmp_path / "store.unfinished").mkdir()
    (tmp_path / "store.unfinished" / ".store.json.1234").write_text("torn")
    with pytest.raises(KeyboardInterrupt):
        make_builder(tmp_path / "store", embed=CountingEmbed(fail_at="image-12")).build()
    assert content(tmp_path / "store") == old
    embed = CountingEmbed()
    store = make_builder(tmp_path / "store", embed=embed).build()
    assert embed.seen[:5] == [f"image-{number}" for number in range(10, 15)] and len(embed.seen) == 15
    assert content(store.path) == undisturbed


class WaitingEmbed(CountingEmbed):
    """Takes its time, so that others get a turn."""

    def __call__(self, images):
        for block in super().__call__(images):
            time.sleep(0.004)
            yield block


class EndlessEmbed(WaitingEmbed):
    """Never gets past the last image."""

    def __call__(self, images):
        for block in super().__call__(images):
            if block[0].image_ids == ["image-109"]:
                threading.Event().wait()
            yield block


def test_killed_at_random_instants_it_ends_byte_for_byte_as_undisturbed(tmp_path, undisturbed):
    generator = random.Random(0)
    for _ in range(3):
        builder = make_builder(tmp_path / "store", embed=EndlessEmbed())
        process = multiprocessing.get_context("fork").Process(target=builder.build)
        process.start()
        time.sleep(generator.uniform(0.02, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert content(make_builder(tmp_path / "store").build().path) == undisturbed


class Stopping:
    """Lets some calls of a function through and stops at the next one, as a kill would."""

    def __init__(self, step, let_through: int):
        self.step, self.left = step, let_through

    def __call__(self, *arguments, **keywords):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.step(*arguments, **keywords)


@pytest.mark.parametrize("name", ["write_json", "move_into_place", "replace_folder", "write_manifest", "link_or_copy"])
def test_stopped_at_any_step_that_changes_the_folder_it_ends_as_undisturbed(tmp_path, monkeypatch, name):
    sources = {"train": PictureSource(2, images_per_part=1)}
    older = {"train": PictureSource(1, images_per_part=1)}
    undisturbed = content(make_builder(tmp_path / "undisturbed", sources).build().path)
    step = getattr(building, name)
    for let_through in range(99):
        path = tmp_path / f"store-{let_through}"
        make_builder(path, older).build()
        stopping = Stopping(step, let_through)
        with monkeypatch.context() as context:
            context.setattr(building, name, stopping)
            try:
                make_builder(path, sources).build()
            except KeyboardInterrupt:
                pass
        assert content(make_builder(path, sources).build().path) == undisturbed
        if stopping.left >= 0:
            break
    assert 0 < let_through < 99


def run_together(builders, process_indices=None) -> None:
    failures = []

    def run(builder, index, count):
        try:
            builder.build(index, count)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(builder, index if process_indices else 0, len(process_indices or [0])))
        for index, builder in enumerate(builders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures and not any(thread.is_alive() for thread in threads)


class MeetingEmbed(CountingEmbed):
    """Begins when all that share a barrier have something to do."""

    def __init__(self, barrier: threading.Barrier):
        super().__init__()
        self.barrier = barrier

    def __call__(self, images):
        if not self.seen:
            self.barrier.wait(30)
        yield from super().__call__(images)


def test_processes_share_the_work_and_the_result_is_that_of_one(tmp_path, undisturbed):
    barrier = threading.Barrier(2)
    embeds = [MeetingEmbed(barrier), MeetingEmbed(barrier)]
    run_together([make_builder(tmp_path / "store", embed=embed) for embed in embeds], process_indices=[0, 1])
    assert content(tmp_path / "store") == undisturbed
    seen = [image for embed in embeds for image in embed.seen]
    assert len(seen) == len(set(seen)) == 25
    assert embeds[0].seen[0] == "image-0" and embeds[1].seen[0] == "image-5"


def test_a_process_takes_over_what_a_missing_one_should_have_made(tmp_path, undisturbed):
    make_builder(tmp_path / "store").build(1, 2)
    assert content(tmp_path / "store") == undisturbed


def test_two_builders_of_different_features_wait_for_one_another(tmp_path):
    embeds = [WaitingEmbed(), WaitingEmbed()]
    builders = [
        make_builder(tmp_path / "store", embed=embed, backbone=name) for embed, name in zip(embeds, "xy", strict=True)
    ]
    run_together(builders)
    assert [len(embed.seen) for embed in embeds] == [25, 25]
    store = EmbeddingStore(tmp_path / "store")
    assert store.fingerprint["backbone"] in ("x", "y")
    for split in store.splits:
        store.verify(split)


def test_a_full_disk_is_named_and_what_is_finished_is_kept(tmp_path, undisturbed, monkeypatch):
    write_shard, written = building.write_shard, []

    def full(folder, name, *arguments):
        written.append(name)
        if len(written) == 3:
            (folder / "images" / name).write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_shard(folder, name, *arguments)

    monkeypatch.setattr(building, "write_shard", full)
    with pytest.raises(OSError, match="The disk is full: 2 of 5 shards are finished and kept. Make room") as error:
        make_builder(tmp_path / "store").build()
    assert error.value.errno == errno.ENOSPC
    assert len(list((tmp_path / "store.unfinished" / "images").iterdir())) == 2
    embed = CountingEmbed()
    assert content(make_builder(tmp_path / "store", embed=embed).build().path) == undisturbed
    assert len(embed.seen) == 15


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_made_again_and_only_it(tmp_path, undisturbed, harm):
    store = make_builder(tmp_path / "store").build()
    file = store.path / "images" / "train-00001-of-00003.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[200] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(damaged if harm == "flip" else damaged[:-9])
    embed = CountingEmbed()
    assert content(make_builder(tmp_path / "store", embed=embed).build().path) == undisturbed
    assert embed.seen == [f"image-{number}" for number in range(5, 10)]


def test_images_that_stand_in_two_parts_are_named_before_the_store_is_replaced(tmp_path):
    source = PictureSource(2)
    source.numbers = lambda part: range(5)
    with pytest.raises(ValueError, match="some image_id stands more than once, the first is 'image-0'"):
        make_builder(tmp_path / "store", {"train": source}).build()
    assert not (tmp_path / "store").exists()
