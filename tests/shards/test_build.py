"""Building: same input, same bytes, whatever the workers and interruptions; nothing bad or foreign enters silently."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.build import BuildOptions, build_shard_set, shuffled_order
from shards.files import TEMPORARY_SUFFIX
from shards.images import ImagePolicy
from shards.reader import ShardSet
from shards.source import SampleRef
from tests.helpers.making import FolderFetcher, FolderSource, folder_bytes, folder_source, picture, pictures

SMALL = BuildOptions(samples_per_shard=8)


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    return folder_source(tmp_path / "original", pictures(30))


def test_every_sample_is_there_once_with_its_bytes_and_label(tmp_path: Path, source: FolderSource) -> None:
    build_shard_set(source, tmp_path / "set", SMALL)
    shards = ShardSet.open(tmp_path / "set")
    names = [shards.source_of(sample) for sample in range(len(shards))]
    assert sorted(names) == sorted(ref.name for ref in source.samples)
    for sample, name in enumerate(names):
        assert shards.encoded(sample).tobytes() == (source.root / name).read_bytes()
        assert shards.labels[sample] == int(name[0])
        shards.check_sample(sample)
    assert [shard.samples for shard in shards.info.shards] == [8, 8, 8, 6]
    assert shards.info.counts == {"jpeg": 30}


def test_two_workers_and_another_folder_give_the_same_bytes(tmp_path: Path, source: FolderSource) -> None:
    build_shard_set(source, tmp_path / "one", SMALL)
    moved = shutil.copytree(source.root, tmp_path / "elsewhere")
    build_shard_set(replace(source, root=moved), tmp_path / "two", SMALL, workers=2)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_the_fetcher_hears_of_every_sample_a_little_before_it_is_fetched(tmp_path: Path, source: FolderSource) -> None:
    heard: list[SampleRef] = []
    fetched: list[SampleRef] = []
    distances: list[int] = []

    class Recorder(FolderFetcher):
        def will_fetch(self, ref: SampleRef) -> None:
            heard.append(ref)

        def fetch(self, ref: SampleRef) -> bytes:
            assert ref in heard
            distances.append(len(heard) - len(fetched))
            fetched.append(ref)
            return super().fetch(ref)

    class Recorded(FolderSource):
        def open(self) -> FolderFetcher:
            return Recorder(self.root)

    recorded = Recorded(source.root, source.samples, source.class_names)
    build_shard_set(recorded, tmp_path / "set", BuildOptions(samples_per_shard=25))
    assert heard == fetched
    assert sorted(ref.name for ref in heard) == sorted(ref.name for ref in source.samples)
    assert max(distances) == 17  # itself, and the 16 behind it


def test_workers_start_no_threads_for_linear_algebra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "5")
    source = folder_source(tmp_path / "images", pictures(8))
    threads = ThreadCounting(source.root, source.samples, source.class_names)
    build_shard_set(threads, tmp_path / "set", BuildOptions(samples_per_shard=2), workers=2)
    assert [path.read_text() for path in source.root.glob("*.threads")] == ["1", "1"]
    assert os.environ["OPENBLAS_NUM_THREADS"] == "5"


class ThreadCounting(FolderSource):
    """Leaves a file for every process that opens it."""

    def open(self) -> FolderFetcher:
        (self.root / f"{os.getpid()}.threads").write_text(os.environ["OPENBLAS_NUM_THREADS"])
        return super().open()


def test_the_shuffle_is_global_and_seeded(tmp_path: Path, source: FolderSource) -> None:
    for seed in (0, 1):
        build_shard_set(source, tmp_path / str(seed), replace(SMALL, seed=seed))
    orders = [(tmp_path / str(seed) / "sources.txt").read_text() for seed in (0, 1)]
    assert orders[0] != orders[1] != "".join(f"{ref.name}\n" for ref in source.samples)
    order = shuffled_order(1000, seed=3)
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.1


def test_the_shuffle_never_changes() -> None:
    # or no build could be repeated, or continued, after an update
    assert shuffled_order(12, seed=7) == [8, 4, 1, 6, 3, 2, 11, 7, 5, 9, 10, 0]


def test_png_named_jpg_and_other_formats_are_found_and_counted(tmp_path: Path) -> None:
    files = {
        "0/a.jpg": picture(0, file_format="PNG"),
        "0/b.JPEG": picture(1, mode="L"),
        "1/c.png": picture(2, mode="RGBA", file_format="PNG"),
        "1/d.webp": picture(3, file_format="WEBP"),
        "2/e": picture(4, mode="CMYK"),
    }
    source = folder_source(tmp_path / "original", files)
    info = build_shard_set(source, tmp_path / "set", SMALL)
    assert info.counts == {"cmyk": 1, "grey": 1, "jpeg": 2, "misnamed": 1, "png": 2, "transcoded": 2, "webp": 1}
    keys = [line.split()[3] for line in (tmp_path / "set" / "000000.idx").read_text().splitlines()[1:]]
    assert Counter(key.split(".")[1] for key in keys) == {"jpg": 2, "png": 3}
    assert all(key.split(".")[0].isdecimal() for key in keys)


def with_bad_images(root: Path) -> FolderSource:
    files = pictures(30)
    files["0/0.jpg"] = picture(0, 300, 300)[:-900]
    files["1/4.jpg"] = b""
    files["2/8.jpg"] = b"no image at all"
    return folder_source(root, files)


def test_bad_images_stop_the_build_by_name(tmp_path: Path) -> None:
    source = with_bad_images(tmp_path / "original")
    with pytest.raises(ValueError, match=r"\d/\d.jpg: .*; replace these files, or continue with --on-bad") as caught:
        build_shard_set(source, tmp_path / "set", replace(SMALL, samples_per_shard=30))
    assert all(name in str(caught.value) for name in ("0/0.jpg", "1/4.jpg", "2/8.jpg"))
    (tmp_path / "original" / "1" / "4.jpg").write_bytes(picture(1, 40, 30))
    with pytest.raises(ValueError, match=r"0/0\.jpg") as caught:
        build_shard_set(source, tmp_path / "set", replace(SMALL, samples_per_shard=30))
    assert "1/4.jpg" not in str(caught.value)


@pytest.mark.parametrize(("on_bad", "left"), [("skip", 27), ("repair", 28)])
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_are_left_out_or_repaired_and_listed(tmp_path: Path, on_bad: str, left: int, workers: int) -> None:
    source = with_bad_images(tmp_path / "original")
    options = replace(SMALL, on_bad=on_bad)
    info = build_shard_set(source, tmp_path / "set", options, workers)
    shards = ShardSet.open(tmp_path / "set")
    assert len(shards) == left == info.num_samples
    assert info.counts["skipped"] == 30 - left
    bad = [json.loads(line) for line in (tmp_path / "set" / "bad.jsonl").read_text().splitlines()]
    assert {(entry["source"], entry["action"]) for entry in bad} == {
        ("0/0.jpg", "skipped" if on_bad == "skip" else "repaired"),
        ("1/4.jpg", "skipped"),
        ("2/8.jpg", "skipped"),
    }
    assert all(entry["reason"] for entry in bad)
    order = shuffled_order(30, seed=0)
    assert all(source.samples[order[entry["position"]]].name == entry["source"] for entry in bad)
    for sample in range(len(shards)):  # the samples behind a gap keep their own names and labels
        name = shards.source_of(sample)
        assert shards.labels[sample] == int(name[0])
        assert name == "0/0.jpg" or shards.encoded(sample).tobytes() == (source.root / name).read_bytes()


def test_fail_can_be_continued_as_skip(tmp_path: Path) -> None:
    source = with_bad_images(tmp_path / "original")
    with pytest.raises(ValueError, match="on-bad"):
        build_shard_set(source, tmp_path / "set", SMALL)
    build_shard_set(source, tmp_path / "set", replace(SMALL, on_bad="skip"))
    build_shard_set(source, tmp_path / "straight", replace(SMALL, on_bad="skip"))
    assert folder_bytes(tmp_path / "set") == folder_bytes(tmp_path / "straight")


def test_a_complete_set_without_bad_images_serves_every_rule(tmp_path: Path, source: FolderSource) -> None:
    build_shard_set(source, tmp_path / "set", SMALL)
    build_shard_set(source, tmp_path / "set", replace(SMALL, on_bad="repair"))


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xff", b"[]", b"7"])
def test_a_damaged_build_record_is_refused(tmp_path: Path, source: FolderSource, damaged: bytes) -> None:
    start_build(source, tmp_path / "set", complete=False)
    (tmp_path / "set" / "build.json").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged|holds another"):
        build_shard_set(source, tmp_path / "set", SMALL)


def test_a_shard_of_bad_images_only_stays_readable(tmp_path: Path) -> None:
    source = folder_source(tmp_path / "original", {"0/a.jpg": b"", "0/b.jpg": picture(1)}, num_classes=1)
    build_shard_set(source, tmp_path / "set", BuildOptions(samples_per_shard=1, on_bad="skip"))
    shards = ShardSet.open(tmp_path / "set")
    assert sorted(shard.samples for shard in shards.info.shards) == [0, 1]
    shards.check_sample(0)


def test_all_images_can_be_encoded_smaller(tmp_path: Path, source: FolderSource) -> None:
    options = BuildOptions(ImagePolicy(encode="jpeg", max_side=16), samples_per_shard=8)
    build_shard_set(source, tmp_path / "set", options)
    index = ShardSet.open(tmp_path / "set").index
    assert (np.maximum(index["width"], index["height"]) == 16).all()


class Interrupted(FolderSource):
    """Fails when a number of samples have been fetched: a stand-in for a kill between two system calls."""

    allowed = 0

    def open(self) -> FolderFetcher:
        fetcher, count = FolderFetcher(self.root), iter(range(self.allowed))
        fetch = fetcher.fetch

        def limited(ref: SampleRef) -> bytes:
            if next(count, None) is None:
                raise KeyboardInterrupt
            return fetch(ref)

        fetcher.fetch = limited  # type: ignore[method-assign]
        return fetcher


@pytest.mark.parametrize("allowed", [0, 7, 8, 20, 29])
def test_an_interrupted_build_continues_and_redoes_no_whole_shard(
    tmp_path: Path, source: FolderSource, allowed: int
) -> None:
    build_shard_set(source, tmp_path / "straight", SMALL)
    folder = tmp_path / "set"
    interrupted = Interrupted(source.root, source.samples, source.class_names)
    interrupted.allowed = allowed
    with pytest.raises(KeyboardInterrupt):
        build_shard_set(interrupted, folder, SMALL)
    (folder / f"000002.tar.1{TEMPORARY_SUFFIX}").write_bytes(b"of a killed worker")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert len(before) == allowed // 8
    build_shard_set(source, folder, SMALL)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert folder_bytes(folder) == folder_bytes(tmp_path / "straight")


def test_a_complete_set_is_left_alone(tmp_path: Path, source: FolderSource) -> None:
    build_shard_set(source, tmp_path / "set", SMALL)
    (tmp_path / "set" / "000000.part.json").write_bytes(b"left by a kill behind the last rename")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.[tin]*")}
    build_shard_set(source, tmp_path / "set", SMALL)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.[tin]*")} == before
    assert not (tmp_path / "set" / "000000.part.json").exists()


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("options", "attributes", "message"),
    [
        (replace(SMALL, seed=5), {}, "options.seed: 0 before, 5 now"),
        (replace(SMALL, samples_per_shard=9), {}, "options.samples_per_shard: 8 before, 9 now"),
        (BuildOptions(ImagePolicy("header"), samples_per_shard=8), {}, "options.check: 'full' before, 'header' now"),
        (SMALL, {"name": "other"}, "name: 'made-up' before, 'other' now"),
        (SMALL, {"options": {"imb_factor": 0.1}}, "options.source.imb_factor: None before, 0.1 now"),
        (SMALL, {"inputs": {"a.tar": {"bytes": 8, "mtime_ns": 1}}}, "inputs.a.tar.bytes: 7 before, 8 now"),
        (SMALL, {"class_names": ["x", "y", "z"]}, "options.source_sha256"),
    ],
)
def test_another_build_in_the_same_folder_is_refused_with_both_values(
    tmp_path: Path, source: FolderSource, complete: bool, options: BuildOptions, attributes: dict, message: str
) -> None:
    source = replace(source, inputs={"a.tar": {"bytes": 7, "mtime_ns": 1}})
    start_build(source, tmp_path / "set", complete)
    with pytest.raises(ValueError, match="holds another data set") as caught:
        build_shard_set(replace(source, **attributes), tmp_path / "set", options)
    assert message in str(caught.value)


def start_build(source: FolderSource, folder: Path, complete: bool) -> None:
    if complete:
        build_shard_set(source, folder, SMALL)
        return
    interrupted = Interrupted(
        source.root, source.samples, source.class_names, options=source.options, inputs=source.inputs
    )
    interrupted.allowed = 10
    with pytest.raises(KeyboardInterrupt):
        build_shard_set(interrupted, folder, SMALL)


def test_an_archive_that_changed_meanwhile_is_noticed(tmp_path: Path, source: FolderSource) -> None:
    source = replace(source, inputs={"a.tar": {"bytes": 7, "mtime_ns": 1}})
    start_build(source, tmp_path / "set", complete=False)
    touched = replace(source, inputs={"a.tar": {"bytes": 7, "mtime_ns": 2}})
    with pytest.raises(ValueError, match=r"inputs.a.tar.mtime_ns: 1 before, 2 now"):
        build_shard_set(touched, tmp_path / "set", SMALL)
    build_shard_set(source, tmp_path / "set", SMALL)
    build_shard_set(touched, tmp_path / "set", SMALL)  # complete: a fresh copy of the same archive is no difference


def test_a_folder_of_other_files_is_refused(tmp_path: Path, source: FolderSource) -> None:
    with pytest.raises(ValueError, match=r"holds 3 files that were not written by a build"):
        build_shard_set(source, source.root, SMALL)


def test_two_builds_in_one_folder_exclude_each_other(tmp_path: Path, source: FolderSource) -> None:
    (tmp_path / "set").mkdir()
    descriptor = os.open(tmp_path / "set", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RuntimeError, match="another build"):
        build_shard_set(source, tmp_path / "set", SMALL)
    os.close(descriptor)
    build_shard_set(source, tmp_path / "set", SMALL)


def test_labels_outside_of_the_classes_are_refused(tmp_path: Path, source: FolderSource) -> None:
    with pytest.raises(ValueError, match=r"10 labels outside 0..1 \(2/2.jpg: 2"):
        build_shard_set(replace(source, class_names=["a", "b"]), tmp_path / "set", SMALL)
    with pytest.raises(ValueError, match="has no samples"):
        build_shard_set(replace(source, samples=[]), tmp_path / "set", SMALL)


def test_an_empty_class_is_reported(tmp_path: Path, source: FolderSource, caplog: pytest.LogCaptureFixture) -> None:
    info = build_shard_set(replace(source, class_names=["a", "b", "c", "lonely"]), tmp_path / "set", SMALL)
    assert info.samples_per_class == (10, 10, 10, 0)
    assert "1 of 4 classes have no sample: lonely" in caplog.text


def test_too_little_space_is_said_before_the_start(
    tmp_path: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
    with pytest.raises(RuntimeError, match=r"about [\d,]+ bytes needed, 5,000 free; make room"):
        build_shard_set(source, tmp_path / "set", SMALL)
    assert not list((tmp_path / "set").glob("*.tar"))


def test_a_disk_that_fills_up_is_named_and_the_build_continues_later(
    tmp_path: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    writev, calls = os.writev, iter(range(10))

    def filling(descriptor: int, parts: list[bytes]) -> int:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return writev(descriptor, parts)

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", filling)
        with pytest.raises(RuntimeError, match=r"disk is too full: about [\d,]+ bytes needed, [\d,]+ free"):
            build_shard_set(source, tmp_path / "set", SMALL)
    assert [path.name for path in (tmp_path / "set").glob("*.tar*")] == ["000000.tar"]
    build_shard_set(source, tmp_path / "set", SMALL)
    build_shard_set(source, tmp_path / "straight", SMALL)
    assert folder_bytes(tmp_path / "set") == folder_bytes(tmp_path / "straight")


def test_an_error_in_a_worker_process_reaches_the_caller(tmp_path: Path, source: FolderSource) -> None:
    (source.root / "1/13.jpg").unlink()
    sizeless = Sizeless(source.root, source.samples, source.class_names)
    with pytest.raises(ValueError, match=r"13\.jpg: cannot be read: No such file"):
        build_shard_set(sizeless, tmp_path / "set", SMALL, workers=2)
    assert not list((tmp_path / "set").glob(f"*{TEMPORARY_SUFFIX}"))


class Sizeless(FolderSource):
    def estimated_bytes(self) -> int | None:
        return None


def test_progress_counts_every_sample_once(tmp_path: Path, source: FolderSource) -> None:
    class Counting:
        def start(self, total: int, done: int) -> None:
            self.total, self.samples, self.bytes = total, done, 0

        def advance(self, samples: int, data_bytes: int) -> None:
            self.samples += samples
            self.bytes += data_bytes

    for workers in (1, 2):
        progress = Counting()
        build_shard_set(source, tmp_path / str(workers), SMALL, workers, progress)
        assert (progress.total, progress.samples, progress.bytes) == (30, 30, source.estimated_bytes())


def test_shards_get_the_wanted_size(tmp_path: Path) -> None:
    files = {f"0/{i}.png": picture(i, 64, 64, file_format="PNG") for i in range(40)}
    source = folder_source(tmp_path / "original", files, num_classes=1)
    info = build_shard_set(source, tmp_path / "set", BuildOptions(shard_bytes=100_000))
    assert all(60_000 < shard.bytes < 120_000 for shard in info.shards[:-1]) and len(info.shards) > 2


@pytest.mark.parametrize("wrong", [{"on_bad": "ignore"}, {"seed": -1}, {"samples_per_shard": 0}, {"shard_bytes": 0}])
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        BuildOptions(**wrong)
