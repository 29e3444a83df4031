"""The command that builds: what it prints, returns and writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shards.reader import ShardSet
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
    ("options", "message"),
    [
        (["--max-side", "10"], "it needs jpeg"),
        (["--encode", "jpeg", "--quality", "99"], "JPEG quality 99; expected 1..95"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert build(images, tmp_path / "set", *options) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "set").exists()


def test_a_bad_image_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "bee" / "0.jpg").write_bytes(picture(0)[:-2])
    assert build(images, tmp_path / "set") == 1
    assert "bee/0.jpg: JPEG without an end marker: the file is cut; replace" in capsys.readouterr().err
    assert build(images, tmp_path / "set", "--on-bad", "repair") == 0  # as the message proposes, in the same folder
    output = capsys.readouterr().out
    assert "1 repaired" in output and "bad.jsonl" in output


@pytest.mark.parametrize("option", ["--workers", "--shard-size", "--samples-per-shard", "--max-side"])
def test_numbers_below_one_are_refused_by_the_parser(images: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        build(images, tmp_path / "set", option, "0")
    assert caught.value.code == 2
