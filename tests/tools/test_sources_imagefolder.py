"""Class folders as a tree and in archives: the same samples, subsets and held-out sets as promised."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.class_counts import samples_per_class
from shards.source import SampleRef
from tests.helpers.archives import class_folders, tar_bytes, write_tree, zip_bytes
from tests.helpers.holding import open_files
from tests.helpers.source_commands import contents, sources_of, the_source
from tools.sources.archives import Folder
from tools.sources.imagefolder import hold_out, long_tail

CLUTTER = {
    "README.txt": b"about",
    "train/class_0/Thumbs.db": b"windows",
    "train/class_0/.DS_Store.jpg": b"mac",
    "__MACOSX/train/class_0/0000.jpg": b"mac",
    "train/stray.jpg": b"no class",
    "test/class_0/0000.jpg": b"another split",
}


def pack(kind: str, folder: Path, files: Any) -> Path:
    if kind == "folder":
        return write_tree(folder / "photos", files)
    path = folder / f"photos.{kind}"
    path.write_bytes({"zip": zip_bytes, "tar": tar_bytes, "tar.gz": lambda f: tar_bytes(f, "w:gz")}[kind](files))
    return path


def counts_of(source: Any) -> list[int]:
    return samples_per_class([ref.label for ref in source.samples], len(source.class_names)).tolist()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_container_gives_the_same_samples(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    files = class_folders(prefix="train")
    images = pack(kind, tmp_path, CLUTTER | dict(reversed(files.items())))
    source = the_source("imagefolder", "--images", images, "--split-dir", "train", out=tmp_path / "out")
    expected = [(name, int(name.split("_")[1][0]), data) for name, data in files.items()]
    assert contents(source) == expected
    assert (source.name, source.split) == ("photos", "train")
    assert source.class_names == ["class_0", "class_1", "class_2", "class_3"]
    assert source.estimated_bytes() == sum(map(len, files.values()))
    assert "left out 3 files: 1 .db, 1 .jpg (clutter), 1 .jpg (outside class folders)" in caplog.text


@pytest.mark.parametrize(
    ("split_dir", "split"),
    [("train", "train"), ("data/val/", "val"), ("validation", "val"), ("test", "test"), ("", "train")],
)
def test_the_split_is_told_by_the_folder(tmp_path: Path, split_dir: str, split: str) -> None:
    images = pack("zip", tmp_path, class_folders(prefix=split_dir.strip("/")))
    assert the_source("imagefolder", "--images", images, "--split-dir", split_dir).split == split
    assert the_source("imagefolder", "--images", images, "--split-dir", split_dir, "--split", "val").split == "val"


def test_images_in_deeper_folders_belong_to_the_class(tmp_path: Path) -> None:
    images = write_tree(tmp_path, {"cat/2019/a.PNG": b"1", "cat/b.jpeg": b"2", "dog/x/y/c.webp": b"3"})
    assert [(name, label) for name, label, _ in contents(the_source("imagefolder", "--images", images))] == [
        ("cat/2019/a.PNG", 0),
        ("cat/b.jpeg", 0),
        ("dog/x/y/c.webp", 1),
    ]


def test_names_in_archives_never_lead_out_of_them(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    files = {"/etc/x.jpg": b"3", "./cat//a.jpg": b"4", "dog/b.jpg": b"5"}
    for kind in ("zip", "tar"):
        folder = tmp_path / kind
        folder.mkdir()
        found = contents(the_source("imagefolder", "--images", pack(kind, folder, files)))
        assert found == [("cat/a.jpg", 0, b"4"), ("dog/b.jpg", 1, b"5"), ("etc/x.jpg", 2, b"3")]
        for outside in ("../secret.jpg", "cat/../../secret.jpg"):
            archive = pack(kind, folder, {**files, outside: b"2"})
            with pytest.raises(ValueError, match=r"secret\.jpg' leads out of the archive; unpack it"):
                the_source("imagefolder", "--images", archive)
        assert len(list(folder.iterdir())) == 1


def test_a_name_packed_twice_is_one_sample_with_the_later_bytes_and_links_are_followed(tmp_path: Path) -> None:
    images = pack("tar", tmp_path, {"cat/a.jpg": b"old", "dog/b.jpg": b"5"})
    with tarfile.open(images, "a") as tar:
        newer, link = tarfile.TarInfo("cat/a.jpg"), tarfile.TarInfo("cat/c.jpg")
        newer.size, link.type, link.linkname = 3, tarfile.SYMTYPE, "a.jpg"
        tar.addfile(newer, io.BytesIO(b"new"))
        tar.addfile(link)
    found = contents(the_source("imagefolder", "--images", images))
    assert found == [("cat/a.jpg", 0, b"new"), ("cat/c.jpg", 0, b"new"), ("dog/b.jpg", 1, b"5")]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_empty_class_is_named(tmp_path: Path, kind: str) -> None:
    images = pack(kind, tmp_path, class_folders((2, 3)))
    if kind == "folder":
        (images / "class_7").mkdir()
    elif kind == "zip":
        images.write_bytes(zip_bytes(class_folders((2, 3)) | {"class_7/": b""}))
    else:
        with tarfile.open(images, "a") as tar:
            empty = tarfile.TarInfo("class_7")
            empty.type = tarfile.DIRTYPE
            tar.addfile(empty, io.BytesIO())
    with pytest.raises(ValueError, match=r"1 of 3 classes have no image: 'class_7' \(label 2\)"):
        the_source("imagefolder", "--images", images)
    assert counts_of(the_source("imagefolder", "--images", images, "--allow-partial")) == [2, 3, 0]


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        (
            class_folders(prefix="train"),
            ["--split-dir", "val"],
            r"no image file .* of val; found there: train; give",
        ),
        ({"a.txt": b""}, [], "of the top level; found there: a.txt"),
        (
            class_folders(prefix="train"),
            [],
            r"the folders train look like splits, .* such as --split-dir train",
        ),
        (class_folders(), ["--holdout", "1"], "--holdout is 1.0, expected a share"),
        (class_folders(counts=(1, 1, 1)), ["--holdout", "0.1"], "which takes no image of any class: the largest has 1"),
        (class_folders(), ["--imb-factor", "0.01"], "would be empty"),
        (class_folders((20, 1, 5)), ["--imb-factor", "0.5"], "2 classes .* the first is 'class_1' with 1 of 10"),
    ],
)
def test_what_cannot_be_built_is_said(tmp_path: Path, files: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        the_source("imagefolder", "--images", pack("zip", tmp_path, files), *arguments)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_truncated_archive_is_refused(tmp_path: Path, kind: str) -> None:
    images = pack(kind, tmp_path, class_folders())
    images.write_bytes(images.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=rf"not a complete {kind} .*download it again"):
        the_source("imagefolder", "--images", images)


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    images = pack("tar", tmp_path, class_folders())
    with tarfile.open(images) as tar:
        cut = tar.getmembers()[5].offset
    images.write_bytes(images.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"not a complete tar \(no end marker at byte"):
        the_source("imagefolder", "--images", images)


def test_a_damaged_zip_member_is_named_when_fetched(tmp_path: Path) -> None:
    images = pack("zip", tmp_path, class_folders())
    data = bytearray(images.read_bytes())
    data[200:260] = bytes(60)
    images.write_bytes(data)
    source = the_source("imagefolder", "--images", images)
    with pytest.raises(ValueError, match=r"class_0/0000\.jpg: cannot be read from .*photos\.zip"):
        source.open().fetch(source.samples[0])


def test_imb_factor_ranks_the_classes_by_size_and_keeps_the_labels(tmp_path: Path) -> None:
    images = pack("zip", tmp_path, class_folders((20, 30, 30, 9)))
    source = the_source("imagefolder", "--images", images, "--imb-factor", 0.1)
    # Ranks: class_1, class_2 (equal, by name), class_0, class_3; 30 · 0.1^(k/3) = 30, 13, 6, 3.
    assert counts_of(source) == [6, 30, 13, 3]
    assert contents(source) == contents(the_source("imagefolder", "--images", images, "--imb-factor", 0.1))
    other = the_source("imagefolder", "--images", images, "--imb-factor", 0.1, "--seed", 1)
    assert counts_of(other) == counts_of(source)
    assert contents(other) != contents(source)


def test_holdout_and_training_set_share_nothing_and_classes_stay_whole(tmp_path: Path) -> None:
    images = pack("zip", tmp_path, class_folders((20, 30, 2, 1)))
    sources = sources_of("imagefolder", "--images", images, "--holdout", 0.1)
    assert {suffix: (source.name, source.split) for suffix, source in sources.items()} == {
        "": ("photos", "train"),
        "-holdout": ("photos-holdout", "val"),
    }
    assert counts_of(sources["-holdout"]) == [2, 3, 1, 0]
    kept, held_out = contents(sources[""]), contents(sources["-holdout"])
    assert sorted(kept + held_out) == contents(the_source("imagefolder", "--images", images))
    assert sources[""].class_names == sources["-holdout"].class_names


def test_the_holdout_is_taken_before_the_tail_is_cut(tmp_path: Path) -> None:
    images = pack("zip", tmp_path, class_folders((20, 20, 20)))
    sources = sources_of("imagefolder", "--images", images, "--holdout", 0.2, "--imb-factor", 0.25)
    assert counts_of(sources["-holdout"]) == [4, 4, 4]
    assert counts_of(sources[""]) == [16, 8, 4]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.floats(0.01, 0.99))
def test_holdout_is_stratified(counts: Sequence[int], share: Any) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    kept, held_out = hold_out(labels, share, seed=3)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for count, held in zip(counts, samples_per_class(labels[held_out], len(counts)), strict=True):
        assert abs(held - count * share) <= 1
        assert 1 <= held < count if count > 1 else held == 0


def test_long_tail_of_the_balanced_cifar_has_the_published_counts() -> None:
    labels = np.repeat(np.arange(10), 5000)
    chosen = long_tail(labels, [str(k) for k in range(10)], 0.01, seed=0)
    assert samples_per_class(labels[chosen], 10).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert (np.diff(chosen) > 0).all()


def test_a_folder_keeps_announced_files_open_until_they_are_read(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    refs = {name: SampleRef(name, 0, name) for name in "abcd"}
    before = open_files()
    fetcher = Folder(tmp_path).open()
    for name in "aabcd":  # once more than it is there, and one that is not there: for `fetch` to say
        fetcher.will_fetch(refs[name])
    assert open_files() == before + 3
    assert [fetcher.fetch(refs[name]) for name in "aab"] == [b"a", b"a", b"b"]
    with pytest.raises(FileNotFoundError):
        fetcher.fetch(refs["d"])
    fetcher.close()
    assert open_files() == before
