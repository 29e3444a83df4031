"""ImageNet-LT from the original tars, from the unpacked folder, and from what people give by mistake."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from shards.class_counts import samples_per_class
from tests.helpers.archives import (
    DEFAULT_COUNTS,
    WORDNET_IDS,
    imagenet_files,
    tar_bytes,
    unpacked_imagenet,
    write_imagenet,
)
from tests.helpers.source_commands import contents, sources_of, the_source

TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("downloads"))


def imagenet(downloads: Path, split: str, *images: Any) -> Any:
    arguments = ("--list", downloads / f"ImageNet_LT_{split}.txt", "--allow-partial")
    return the_source("imagenet-lt", "--images", *images, *arguments)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("flat_val", [False, True])
def test_the_original_tars_give_what_the_unpacked_folder_gives(
    downloads: Path, tmp_path: Path, split: str, flat_val: bool
) -> None:
    unpacked = imagenet(downloads, split, unpacked_imagenet(tmp_path, flat_val=flat_val))
    tars = imagenet(downloads, split, *(downloads / tar for tar in TARS))
    expected = [(name, WORDNET_IDS.index(name.split("/")[1]), data) for name, data in imagenet_files()[split].items()]
    assert contents(tars) == contents(unpacked) == expected
    assert tars.estimated_bytes() == unpacked.estimated_bytes() == sum(len(data) for _, _, data in expected)
    assert tars.class_names == unpacked.class_names
    assert (tars.split, tars.options) == (unpacked.split, unpacked.options)


def test_labels_and_class_names_follow_the_wordnet_ids(downloads: Path) -> None:
    source = imagenet(downloads, "train", downloads)
    assert source.class_names[:4] == list(WORDNET_IDS[:4])
    assert len(source.class_names) == 1000
    counts = samples_per_class([ref.label for ref in source.samples], 1000)
    assert counts[:5].tolist() == [*DEFAULT_COUNTS, 0]


def test_a_folder_of_the_downloads_is_enough_and_several_lists_give_several_sets(downloads: Path) -> None:
    lists = [downloads / f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")]
    sources = sources_of("imagenet-lt", "--images", downloads, "--list", *lists, "--allow-partial")
    assert {suffix: source.split for suffix, source in sources.items()} == {
        "/train": "train",
        "/val": "val",
        "/test": "test",
    }
    assert all(contents(source) for source in sources.values())


def test_only_the_files_that_are_read_count_as_inputs(downloads: Path) -> None:
    source = imagenet(downloads, "test", *(downloads / tar for tar in TARS))
    assert set(source.inputs) == {"ILSVRC2012_img_val.tar", "ImageNet_LT_test.txt"}
    assert source.inputs["ILSVRC2012_img_val.tar"]["bytes"] == (downloads / TARS[1]).stat().st_size


def test_a_worker_opens_a_pickled_source_that_does_not_carry_the_names(downloads: Path) -> None:
    source = imagenet(downloads, "train", downloads)
    ref = source.samples[3]
    sent = pickle.dumps(source)
    assert ref.name.encode() not in sent
    assert pickle.loads(sent).open().fetch(ref) == imagenet_files()["train"][ref.name]


def test_a_list_of_another_length_is_refused_with_both_numbers(downloads: Path) -> None:
    with pytest.raises(ValueError, match=r"train: the list has 23 images, the published one 115846"):
        the_source("imagenet-lt", "--images", downloads, "--list", downloads / "ImageNet_LT_train.txt")


def test_all_absent_files_are_counted_and_ten_shown(downloads: Path, tmp_path: Path) -> None:
    names = [f"train/n01440764/absent_{i:02d}.JPEG 0" for i in range(13)]
    present = (downloads / "ImageNet_LT_train.txt").read_text()
    (tmp_path / "train.txt").write_text("\n".join(names) + "\n" + present)
    arguments = ("--images", downloads, "--list", tmp_path / "train.txt", "--allow-partial")
    with pytest.raises(FileNotFoundError, match=r"13 of the 36 listed images are not in") as error:
        _ = the_source("imagenet-lt", *arguments).samples
    assert str(error.value).count("absent_") == 10
    assert "and 3 more" in str(error.value)


def test_a_missing_archive_is_named(downloads: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar: no such file"):
        imagenet(downloads, "train", tmp_path / "nowhere.tar")
    with pytest.raises(FileNotFoundError, match=r"images of val/: neither that folder nor ILSVRC2012_img_val\.tar"):
        imagenet(downloads, "test", downloads / TARS[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar_bytes({"photo.jpg": b"x"}), r"its first file is photo\.jpg, expected the class tars"),
        (tar_bytes({}), r"not a folder, tar"),
        (b"<!DOCTYPE html><p>Please log in", r"a web page"),
        (b"\x1f\x8b whatever", r"a gzip file; ImageNet-LT is read from"),
        (b"", r"not a folder, tar"),
    ],
)
def test_a_wrong_archive_is_told_apart(downloads: Path, tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        imagenet(downloads, "train", tmp_path / "ILSVRC2012_img_train.tar")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.999])
def test_a_truncated_tar_of_tars_is_refused(downloads: Path, tmp_path: Path, kept: float) -> None:
    whole = (downloads / TARS[0]).read_bytes().rstrip(b"\0")
    (tmp_path / TARS[0]).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"not a complete tar .* download it again"):
        _ = imagenet(downloads, "train", tmp_path / TARS[0]).samples


def test_labels_that_are_not_the_rank_of_the_wordnet_ids_are_refused(downloads: Path, tmp_path: Path) -> None:
    wnids = [f"n{number:08d}" for number in range(1000)]
    lines = [f"train/{wnid}/{wnid}_1.JPEG {(label + 1) % 1000}" for label, wnid in enumerate(wnids)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="not the rank of the WordNet ids"):
        the_source("imagenet-lt", "--images", downloads, "--list", tmp_path / "train.txt", "--allow-partial")


def test_a_list_over_both_sides_is_refused(downloads: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("train/n01440764/a.JPEG 0\nval/n01440764/b.JPEG 0\n")
    with pytest.raises(ValueError, match=r"begin with train, val"):
        the_source("imagenet-lt", "--images", downloads, "--list", tmp_path / "train.txt", "--allow-partial")
