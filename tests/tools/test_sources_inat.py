"""iNaturalist from its tar.gz, spooled once, and from the unpacked folder; JSON and lists."""

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any, Never

import pytest

from tests.helpers.archives import DEFAULT_COUNTS, inat_files, write_inat, write_tree
from tests.helpers.source_commands import contents, sources_of, the_source
from tools.sources.inat import INAT_EXPECTED


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return write_inat(tmp_path / "downloads")


def inat(downloads: Path, *lists: Any, images: Path | None = None, out: Path) -> Any:
    arguments = ("--images", images or downloads / "train_val2018.tar.gz", "--list", *(downloads / n for n in lists))
    return sources_of("inat18", *arguments, "--allow-partial", out=out)


@pytest.mark.parametrize("train_list", ["train2018.json", "iNaturalist18_train.txt"])
def test_archive_and_folder_give_the_same_samples_from_json_and_from_the_list(
    downloads: Path, tmp_path: Path, train_list: str
) -> None:
    files = inat_files()["train"]
    folder = write_tree(tmp_path / "unpacked", files)
    spooled = inat(downloads, train_list, out=tmp_path / "out")[""]
    unpacked = inat(downloads, train_list, images=folder, out=tmp_path / "out")[""]
    expected = [(name, int(name.split("/")[2]), data) for name, data in files.items()]
    assert contents(spooled) == contents(unpacked) == expected
    assert spooled.estimated_bytes() == sum(map(len, files.values()))


def test_class_names_come_from_the_categories(downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, annotations = downloads / "train_val2018.tar.gz", downloads / "train2018.json"
    with pytest.raises(ValueError, match=r"the list has 23 images, the published one 437513"):
        the_source("inat18", "--images", images, "--annotations", annotations, out=tmp_path / "out")
    arguments = ("--images", images, "--list", annotations, "--num-classes", len(DEFAULT_COUNTS))
    assert the_source("list", *arguments, out=tmp_path / "out").class_names == [f"Species {k}" for k in range(4)]


def test_the_archive_is_spooled_once_for_train_and_val_and_removed_at_the_end(downloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "inat18"
    sources = inat(downloads, "train2018.json", "val2018.json", out=out)
    assert list(sources) == ["/train", "/val"]
    assert not out.parent.exists()  # nothing is unpacked before all lists are checked
    spools = set()
    for source in sources.values():
        assert contents(source)
        spools |= {(path, path.stat().st_mtime_ns) for path in out.parent.rglob("*.tar")}
    assert len(spools) == 1
    for source in sources.values():
        source.close()
    assert list(out.parent.iterdir()) == []


def test_an_interrupted_build_finds_its_spool_and_a_replaced_archive_does_not(downloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _ = inat(downloads, "train2018.json", out=out)[""].samples
    (spool,) = tmp_path.rglob("*-scratch/*.tar")
    written = spool.stat().st_mtime_ns
    again = inat(downloads, "train2018.json", out=out)[""]
    assert contents(again)
    assert spool.stat().st_mtime_ns == written
    del again  # its lock of the scratch folder ends with it
    write_inat(downloads, counts=(13, 6, 3, 2))
    assert len(contents(inat(downloads, "train2018.json", out=out)[""])) == 24


def test_too_little_space_is_said_before_anything_is_written(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1000))
    with pytest.raises(OSError, match=r"0\.0 GB free.*give --images the folder of the unpacked archive"):
        _ = inat(downloads, "train2018.json", out=tmp_path / "out")[""].samples
    assert not list(tmp_path.rglob("*-scratch/*"))


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_behind(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(unpacked: Any, file: Path, spool: Any, compressed_bytes: Any) -> Never:
        spool.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tools.sources.spool._unpack", fill)
    with pytest.raises(OSError, match=r"unpacking train_val2018\.tar\.gz failed, .*No space left"):
        _ = inat(downloads, "train2018.json", out=tmp_path / "out")[""].samples
    assert not list(tmp_path.rglob("*-scratch/*"))


@pytest.mark.parametrize("kept", [0.4, 0.999])
def test_a_truncated_archive_is_refused_and_leaves_no_spool(downloads: Path, tmp_path: Path, kept: float) -> None:
    archive = downloads / "train_val2018.tar.gz"
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"truncated or damaged .*download it again"):
        _ = inat(downloads, "train2018.json", out=tmp_path / "out")[""].samples
    assert not list(tmp_path.rglob("*-scratch/*"))


def test_every_year_knows_its_published_numbers(downloads: Path, tmp_path: Path) -> None:
    sizes = {name: (e.num_classes, e.samples["train"], e.samples["val"]) for name, e in INAT_EXPECTED.items()}
    assert sizes == {
        "inat17": (5_089, 579_184, 95_986),
        "inat18": (8_142, 437_513, 24_426),
        "inat19": (1_010, 265_213, 3_030),
        "inat21": (10_000, 2_686_843, 100_000),
    }
    document = json.loads((downloads / "val2018.json").read_text())
    document["annotations"][2]["category_id"] = 1_010
    (downloads / "val2019.json").write_text(json.dumps(document))
    arguments = ("--images", downloads, "--annotations", downloads / "val2019.json", "--allow-partial")
    with pytest.raises(
        ValueError, match=r"val2019\.json: annotations\[2\]: label 1010 is out of range, expected 0 to 1009"
    ):
        the_source("inat19", *arguments)
