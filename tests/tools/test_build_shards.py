"""The command that builds: what it prints, returns and writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.commandline import FAILED, USAGE
from shards.reader import ShardSet
from tests.helpers.archives import class_folders, tar_bytes
from tests.helpers.making import folder_bytes, picture
from tools.build_shards import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for label, count in (("ant", 9), ("bee", 5)):
        for i in range(count):
            path = tmp_path / "images" / label / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))
    return tmp_path / "images"


def build(images: Path, out: Path, *options: str) -> int:
    return main(["imagefolder", "--images", str(images), "--out", str(out), "--workers", "1", *options])


def test_a_build_ends_with_what_was_written(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(images, tmp_path / "set", "--samples-per-shard", "4") == 0
    output = capsys.readouterr().out
    assert "14 images of 2 classes, imbalance 1.8" in output
    assert "4 shards" in output and "14 jpeg" in output
    assert ShardSet.open(tmp_path / "set").samples_per_class.tolist() == [9, 5]


def test_the_module_runs_as_a_command_and_repeats_its_bytes(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.build_shards", "imagefolder", "--images", str(images), "--out"]
    subprocess.run([*command, str(tmp_path / "a"), "--workers", "2", "--samples-per-shard", "4"], check=True)
    build(images, tmp_path / "b", "--samples-per-shard", "4")
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_several_processes_read_what_was_unpacked(tmp_path: Path) -> None:
    for kind, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        (tmp_path / f"photos.{kind}").write_bytes(tar_bytes(class_folders((9, 5)), mode))
    options = ("--samples-per-shard", "4", "--workers")
    assert build(tmp_path / "photos.tar.gz", tmp_path / "unpacked", *options, "2") == 0
    assert build(tmp_path / "photos.tar", tmp_path / "set", *options, "1") == 0
    ours, theirs = folder_bytes(tmp_path / "unpacked"), folder_bytes(tmp_path / "set")
    assert {name for name in ours if ours[name] != theirs[name]} == {"dataset.json"}  # it names the archive


def test_a_holdout_is_built_beside_the_set(images: Path, tmp_path: Path) -> None:
    assert build(images, tmp_path / "set", "--holdout", "0.2") == 0
    kept, held_out = ShardSet.open(tmp_path / "set"), ShardSet.open(tmp_path / "set-holdout")
    assert len(kept) + len(held_out) == 14 and len(held_out) >= 2


def test_options_reach_the_set(images: Path, tmp_path: Path) -> None:
    (images / "ant" / "bad.jpg").write_bytes(b"bad")
    options = ["--encode", "jpeg", "--max-side", "16", "--quality", "80"]
    options += ["--check", "header", "--on-bad", "skip", "--seed", "3"]
    assert build(images, tmp_path / "set", *options) == 0
    shards = ShardSet.open(tmp_path / "set")
    assert int(shards.index["width"].max()) == 16
    wanted = {"encode": "jpeg", "max_side": 16, "quality": 80, "check": "header", "on_bad": "skip", "seed": 3}
    assert wanted.items() <= shards.info.options.items()
    assert shards.info.counts["skipped"] == 1


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--max-side", "10"], USAGE, "it needs jpeg"),
        (["--encode", "jpeg", "--quality", "99"], USAGE, "JPEG quality 99; expected 1..95"),
        (["--holdout", "1.5"], USAGE, "--holdout is 1.5"),
        (["--imb-factor", "2"], USAGE, "imb_factor is 2.0"),
        (["--images", "nowhere"], FAILED, "nowhere"),
        (["--images", __file__], FAILED, "test_build_shards.py"),
        (["--split-dir", "nowhere"], FAILED, "nowhere"),
    ],
)
def test_errors_are_one_line_and_a_status(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
) -> None:
    assert build(images, tmp_path / "set", *options) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("build_shards: error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "set").exists()


def test_a_bad_image_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "bee" / "0.jpg").write_bytes(picture(0)[:-2])
    assert build(images, tmp_path / "set") == 1
    assert "bee/0.jpg: JPEG without an end marker: the file is truncated; replace" in capsys.readouterr().err
    assert build(images, tmp_path / "set", "--on-bad", "repair") == 0  # as the message proposes, in the same folder
    output = capsys.readouterr().out
    assert "1 repaired" in output and "bad.jsonl" in output


@pytest.mark.parametrize("option", ["--workers", "--shard-size", "--samples-per-shard", "--max-side"])
def test_numbers_below_one_are_refused_by_the_parser(images: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        build(images, tmp_path / "set", option, "0")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "options",
    [["--workers", "many"], ["--holdout", "nan"], ["--seed", "-1"], ["--wrokers", "2"], ["--imb-factor", "x"]],
)
def test_what_the_parser_refuses_has_the_prefix(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        build(images, tmp_path / "set", *options)
    error = capsys.readouterr().err
    assert caught.value.code == USAGE
    assert error.startswith("build_shards") and ": error: " in error and error.count("\n") == 1


@pytest.mark.parametrize("where", ["", "under/it"])
def test_a_file_in_the_place_of_the_folder_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    (tmp_path / "set").write_text("mine")
    assert build(images, tmp_path / "set" / where) != 0
    assert "build_shards: error: " in capsys.readouterr().err
    assert (tmp_path / "set").read_text() == "mine"


def test_a_build_goes_on_when_nobody_reads_what_it_prints(images: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tools.build_shards", "imagefolder", "--images", str(images), "--out"]
    built = subprocess.run(
        [*command, str(tmp_path / "set"), "--workers", "1"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert built.returncode == 0 and "Traceback" not in built.stderr
    assert len(ShardSet.open(tmp_path / "set")) == 14
