"""Building a store shard by shard: by any number of processes, stopped and gone on with at any time."""

import errno
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..pairs.sources import CaptionedImage, PairSource
from ..utils.durable_files import link_or_copy, move_into_place, replace_folder, writing_alone
from ..utils.json_files import read_json, write_json
from .embedding import embed, features_fingerprint
from .embedding_store import EmbeddingSplit, EmbeddingStore, write_shard
from .locks import BuildLocks
from .manifest import check_is_build, check_is_store, read_manifest, write_manifest
from .shards import FEATURE_COLUMNS, shard_name
from .verification import damage_of, is_verified, verified_states


logger = logging.get_logger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5

Embed = Callable[[Iterator[CaptionedImage]], Generator[tuple[EmbeddingSplit, list[str]], None, None]]


class CachedFeatures(NamedTuple):
    """
    What [`cached_features`] found or made, which unpacks as `store, broken_images`.

    Attributes:
        store (`EmbeddingStore`): the features.
        broken_images (`list[str]`): names of the images that were left out, `store.broken_images`.
    """

    store: EmbeddingStore
    broken_images: list[str]


def cached_features(
    folder: Path,
    model: Any,
    processor: Any,
    sources: Mapping[str, PairSource],
    *,
    batch_size: int,
    dtype: torch.dtype | None = None,
    skip_broken_images: bool = False,
    process_index: int = 0,
    num_processes: int = 1,
) -> CachedFeatures:
    """
    The features of every split: from the store at `folder` as far as it was made from the same backbone, processor and
    data, and else computed and stored there. All processes of a run call it; each returns when the store is finished.

    Each part of a source becomes a shard. A build in progress stands in `{folder}.unfinished`, whose finished shards
    are used again when it was stopped; the store at `folder` is replaced at the end.

    Args:
        folder (`Path`): where the store is or will be, on a file system that all processes share.
        model, processor, batch_size, skip_broken_images: as for [`embed`].
        sources (`Mapping[str, PairSource]`): the pairs of each split.
        dtype (`torch.dtype`, *optional*):
            What features are stored as: float32, float16 or bfloat16. Default: float32, or what the backbone has if
            that is one of the shorter two.
        process_index, num_processes (`int`, *optional*): with which parts this process begins.

    Returns:
        [`CachedFeatures`]: the store, and the names of the images that were left out.

    Raises:
        ValueError: as [`embed`], or if fewer than two pairs are left in a split.
        OSError: if the disk is full; finished shards are kept.
    """
    if dtype is None:
        dtype = model.vlm.dtype if model.vlm.dtype in (torch.float16, torch.bfloat16) else torch.float32
    builder = StoreBuilder(
        folder,
        sources,
        features_fingerprint(model, processor, sources, dtype=dtype),
        partial(embed, model, processor, batch_size=batch_size, dtype=dtype, skip_broken_images=skip_broken_images),
        dim=model.config.projection_dim,
        dtype=dtype,
        skip_broken_images=skip_broken_images,
        details={"backbone_fingerprint": model.config.backbone_fingerprint},
    )
    store = builder.build(process_index, num_processes)
    return CachedFeatures(store, store.broken_images)


class StoreBuilder:
    """
    Makes a store out of sources of pairs with a function that embeds them.

    Args:
        path (`Path`): where the store will be.
        sources (`Mapping[str, PairSource]`): the pairs of each split.
        fingerprint (`dict`): as [`features_fingerprint`] gives it.
        embed (`Callable`): gives the features of images and their captions, block after block, with the names of the
            images that it left out.
        dim (`int`), dtype (`torch.dtype`): of the features.
        skip_broken_images (`bool`): whether shards from which images were left out are fit for use.
        details (`dict`): what else `store.json` is to say.
    """

    def __init__(
        self,
        path: Path,
        sources: Mapping[str, PairSource],
        fingerprint: dict[str, Any],
        embed: Embed,
        *,
        dim: int,
        dtype: torch.dtype,
        skip_broken_images: bool = False,
        details: Mapping[str, Any] | None = None,
    ):
        self.path, self.sources = Path(path).absolute(), sources
        self.fingerprint, self.embed = fingerprint, embed
        self.dim, self.dtype, self.skip_broken_images = dim, dtype, skip_broken_images
        self.details = dict(details or {})
        self.unfinished = self.path.with_name(self.path.name + ".unfinished")
        self._plan = {"fingerprint": fingerprint, "skip_broken_images": skip_broken_images}
        self._plan_file = self.unfinished / "plan.json"
        self._records = self.unfinished / "records"
        self._workshop = self.unfinished / "workshop"
        # The file name of each shard, and where its pairs come from.
        self._parts = {
            shard_name(split, part, source.num_parts): (split, part)
            for split, source in sources.items()
            for part in range(source.num_parts)
        }

    def build(self, process_index: int = 0, num_processes: int = 1) -> EmbeddingStore:
        """Makes what is missing, together with all others that are building the same store, and returns it."""
        check_is_store(self.path)
        own = (self._plan_file, self._records, self._workshop)
        check_is_build(self.unfinished, tuple(path.name for path in own))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = list(self._parts)
        turns = [(process_index + turn) % num_processes for turn in range(num_processes)]
        order = list(chain.from_iterable(names[turn::num_processes] for turn in turns))
        with BuildLocks(self.path) as locks:
            while True:
                store = self._join(locks)
                if store is None:
                    self._make_shards(order, locks, show_progress=process_index == 0)
                    with locks.folder():
                        store = self._finish()
                        locks.leave()
                if store is not None:
                    return store

    def _fingerprint_of(self, name: str) -> str:
        """What a shard depends on, as one SHA-256."""
        split, part = self._parts[name]
        content = {**self.fingerprint, "data": [split, self.fingerprint["data"][split][part]]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _join(self, locks: BuildLocks) -> EmbeddingStore | None:
        """The store if it is there already; else nothing, once this process is one of its builders."""
        while True:
            with locks.folder():
                if self._is_built():
                    return EmbeddingStore(self.path)
                others = locks.others()
                if not others:
                    self._prepare()
                if _record(self._plan_file) == self._plan:
                    locks.join()
                    return None
            logger.warning_once(
                f"Waiting for {' and '.join(others)}, building {str(self.path)!r} from another backbone, processor or "
                "data."
            )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _is_built(self) -> bool:
        manifest = read_manifest(self.path)
        return manifest.get("fingerprint") == self.fingerprint and all(
            name is not None for name, _ in self._fit_shards(self.path, manifest["shards"])
        )

    def _fit_shards(
        self, folder: Path, shards: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
        """Shards with the names that they have in this build; `None` if they are not of it or not fit for use."""
        name_of = {self._fingerprint_of(name): name for name in self._parts}
        verified = verified_states(folder)
        for shard in shards:
            name = name_of.get(shard.get("fingerprint", ""))
            if name is None or (shard["broken_images"] and not self.skip_broken_images):
                yield None, shard
                continue
            files = {folder / shard[part]["file"]: shard[part] for part in FEATURE_COLUMNS}
            damages = {}
            for file, record in files.items():
                if not is_verified(folder, file, verified):
                    damages[file] = damage_of(file, record)
            for file, damage in damages.items():
                if damage is not None:
                    logger.warning_once(f"{file} {damage}: these features are computed again.")
            yield None if any(damages.values()) else name, shard

    def _prepare(self) -> None:
        """Leaves in the unfinished folder what is of use there and in the old store; nobody else is building."""
        for folder in (*(self.unfinished / part for part in FEATURE_COLUMNS), self._records):
            folder.mkdir(parents=True, exist_ok=True)
        for shard in read_manifest(self.unfinished).get("shards", []):  # stopped just before it was put in place
            write_json(self._record_file(Path(shard["images"]["file"]).name), shard)
        for file in self.unfinished.glob("*"):
            if file.is_file():  # of a build that was stopped while it finished, or wrote one of these
                file.unlink()
        shutil.rmtree(self._workshop, ignore_errors=True)
        self._workshop.mkdir()
        kept: set[str | None] = set()
        recorded = [_record(file) for file in sorted(self._records.glob("[!.]*.json"))]
        for fit_name, shard in self._fit_shards(self.unfinished, recorded):
            if fit_name == Path(shard["images"]["file"]).name:
                kept.add(fit_name)
        for folder in (*(self.unfinished / part for part in FEATURE_COLUMNS), self._records):
            for file in folder.iterdir():
                if file.name.removesuffix(".json") not in kept:
                    file.unlink()
        for fit_name, shard in self._fit_shards(self.path, read_manifest(self.path).get("shards", [])):
            if fit_name is not None and fit_name not in kept:
                files = {part: {**shard[part], "file": f"{part}/{fit_name}"} for part in FEATURE_COLUMNS}
                for part in FEATURE_COLUMNS:
                    link_or_copy(self.path / shard[part]["file"], self.unfinished / files[part]["file"])
                write_json(self._record_file(fit_name), {**shard, **files})
        write_json(self._plan_file, self._plan)

    def _record_file(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _finished_shards(self) -> set[str]:
        """Names of the shards that are finished; of all, where the store is."""
        if not self._plan_file.is_file():
            return set(self._parts)
        return {file.stem for file in self._records.glob("[!.]*.json")}

    def _make_shards(self, order: Sequence[str], locks: BuildLocks, *, show_progress: bool) -> None:
        """Makes shards in the given order until all are there, leaving out those that other processes make."""
        counts = [source.num_captions for source in self.sources.values()]
        total = None if None in counts else sum(counts)  # type: ignore[arg-type]
        counted = self._finished_shards()
        initial = sum(self._num_pairs(name) for name in counted)
        with tqdm(total=total, initial=initial, desc="Features", unit=" pairs", disable=not show_progress) as progress:
            while missing := [name for name in order if name not in counted]:
                made = self._make_one(missing, locks, progress)
                if made is None:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    by_others = self._finished_shards() - counted
                    progress.update(sum(self._num_pairs(name) for name in by_others))
                    counted |= by_others
                else:
                    counted.add(made)

    def _num_pairs(self, name: str) -> int:
        return _record(self._record_file(name)).get("captions", {"rows": 0})["rows"]

    def _make_one(self, missing: Sequence[str], locks: BuildLocks, progress: tqdm) -> str | None:
        """Makes the first shard that nobody else is making, and returns its name."""
        for name in missing:
            with locks.claim(name) as claimed:
                if claimed and self._plan_file.is_file() and not self._record_file(name).is_file():
                    try:
                        self._make_shard(name, progress)
                    except OSError as error:
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                            raise
                        raise OSError(
                            error.errno,
                            f"The disk is full: {len(self._finished_shards())} of {len(self._parts)} shards are "
                            "finished and kept. Make room and start again, which goes on from there",
                            str(self.unfinished),
                        ) from error
                    return name
        return None

    def _make_shard(self, name: str, progress: tqdm) -> None:
        split, part = self._parts[name]
        broken: list[str] = []

        def blocks_of(embedded: Iterator[tuple[EmbeddingSplit, list[str]]]) -> Iterator[EmbeddingSplit]:
            for block, broken_of_block in embedded:
                broken.extend(broken_of_block)
                yield block
                progress.update(len(block.captions))

        with (
            tempfile.TemporaryDirectory(dir=self._workshop) as workshop,
            closing(self.embed(self.sources[split].read(part))) as embedded,
        ):
            for folder in FEATURE_COLUMNS:
                (Path(workshop) / folder).mkdir()
            files = write_shard(Path(workshop), name, blocks_of(embedded), self.dim, self.dtype)
            for file in files.values():
                move_into_place(Path(workshop) / file["file"], self.unfinished / file["file"])
        record = {"split": split, "fingerprint": self._fingerprint_of(name), **files, "broken_images": broken}
        write_json(self._record_file(name), record)

    def _finish(self) -> EmbeddingStore | None:
        """Checks the finished shards and makes a store of them, unless another process did."""
        if not self._plan_file.is_file():
            return None
        shards = [_record(self._record_file(name)) for name in self._parts]
        for split in self.sources:
            of_split = [shard for shard in shards if shard["split"] == split]
            num_pairs = sum(shard["captions"]["rows"] for shard in of_split)
            num_broken = sum(len(shard["broken_images"]) for shard in of_split)
            if num_pairs < 2:
                raise ValueError(
                    f"Only {num_pairs} pairs of split {split!r} are left after skipping {num_broken} broken images."
                )
        write_manifest(self.unfinished, fingerprint=self.fingerprint, shards=shards, **self.details)
        store = EmbeddingStore(self.unfinished)
        for split in store.splits:
            store.verify(split)
        self._plan_file.unlink()
        for folder in (self._records, self._workshop):
            shutil.rmtree(folder)
        with writing_alone(self.path):
            replace_folder(self.unfinished, self.path)
        return EmbeddingStore(self.path)


def _record(file: Path) -> dict[str, Any]:
    """What was noted in a file of the unfinished folder; nothing where there is none."""
    remedy = f"Remove {str(file.parent)!r}, whose shards are then made again."
    return read_json(file, remedy=remedy) if file.is_file() else {}
