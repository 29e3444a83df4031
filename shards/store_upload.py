"""Building into a store: shards are written to a local folder and moved to the store once complete.

Objects appear in this order: build.json; for each shard the tar, its .idx, then its .part.json, which marks it as done;
the files of the whole set; dataset.json, which marks the set as complete. Then the build's own files are deleted. A
build that continues, on any machine, checks the store for what is done and needs nothing from its local folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from shards.files import write_atomically
from shards.format import (
    BAD_FILE,
    BY_CLASS_FILE,
    DATASET_FILE,
    INDEX_FILE,
    LEFT_OUT_FILE,
    RECORD_FILE,
    SOURCES_FILE,
    shard_index_file,
)
from shards.local_copy import CacheOptions, copy_folder
from shards.object_store import Bucket, ObjectInfo
from shards.shard_task import ShardResult, mark_as_uploaded, part_path

_PART = re.compile(r"(\d{6})\.part\.json")
_OURS = re.compile(r"\d{6}\.(tar|idx|part\.json)")
_AT_A_TIME = 32


def staging_folder(url: str) -> Path:
    """The folder where this machine writes the shards of a build for this URL before uploading them."""
    return copy_folder(CacheOptions(), url, b"build")


class StoreUpload:
    """The store's side of one build."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket = Bucket(url)

    def fetch_state(self, folder: Path) -> None:
        """Make `folder` hold exactly what the store has of this build or the complete set.

        Raises ValueError if the URL holds objects that were not written by a build.
        """
        there = self._bucket.listing()
        self._refuse_strangers(there)
        for path in folder.iterdir():  # not the folder: it is locked
            path.unlink()
        if DATASET_FILE in there:
            self._fetch(folder, [DATASET_FILE])
        elif RECORD_FILE in there:
            self._fetch(folder, [RECORD_FILE])
            self.fetch_parts(folder)

    def fetch_parts(self, folder: Path) -> None:
        """Download the records of finished shards that are missing in `folder`."""
        there = self._bucket.listing()
        parts = [match for match in map(_PART.fullmatch, there) if match and not (folder / match[0]).is_file()]
        self._fetch(folder, [match[0] for match in parts])
        for match in parts:
            self._confirm(folder, int(match[1]), there)

    @contextmanager
    def naming(self, folder: Path) -> Iterator[None]:
        """Make errors inside the block name the URL, not the local folder."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            if type(error) not in (ValueError, RuntimeError) or str(folder) not in str(error):
                raise
            raise type(error)(str(error).replace(str(folder), self.url)) from error

    def claim(self, folder: Path) -> None:
        """Record in the store what is being built."""
        self._bucket.write(RECORD_FILE, folder / RECORD_FILE)

    def finish(self, folder: Path) -> None:
        """Upload the files of the whole set, dataset.json last, then delete the files that only the build needed."""
        there = self._bucket.listing()
        if DATASET_FILE not in there:
            for name in (INDEX_FILE, BY_CLASS_FILE, SOURCES_FILE, BAD_FILE, LEFT_OUT_FILE, DATASET_FILE):
                if (folder / name).is_file():
                    self._bucket.write(name, folder / name)
        self._bucket.delete(name for name in there if _PART.fullmatch(name) or name == RECORD_FILE)
        shutil.rmtree(folder)

    def _fetch(self, folder: Path, names: list[str]) -> None:
        def fetch(name: str) -> None:
            write_atomically(folder / name, self._bucket.read(name))

        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(fetch, names))

    def _confirm(self, folder: Path, shard: int, there: Mapping[str, ObjectInfo]) -> None:
        """Mark a shard as uploaded if all its objects are complete; otherwise its record does not count."""
        result = ShardResult.read_record(folder, shard)
        tar = there.get(result.info.file)
        if tar is not None and tar.bytes == result.info.bytes and shard_index_file(shard) in there:
            mark_as_uploaded(folder, shard)
        else:
            part_path(folder, result.info.file).unlink()

    def _refuse_strangers(self, there: Mapping[str, ObjectInfo]) -> None:
        ours = DATASET_FILE in there or RECORD_FILE in there
        strangers = sorted(name for name in there if not (ours and _OURS.fullmatch(name)))
        if not ours and strangers:
            raise ValueError(
                f"{self.url}: holds {len(strangers)} objects that were not written by a build "
                f"({', '.join(strangers[:3])}, …); choose an empty --out URL"
            )


def upload_shard(url: str, folder: Path, shard: int) -> None:
    """Move a finished shard and its record from `folder` into the store."""
    bucket, result = Bucket(url), ShardResult.read_record(folder, shard)
    # In this order: the record marks the rest as complete.
    files = (folder / result.info.file, folder / shard_index_file(shard), part_path(folder, result.info.file))
    for path in files:
        bucket.write(path.name, path)
    for path in files:
        path.unlink()
