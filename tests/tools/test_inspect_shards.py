"""The command that inspects: numbers as text and JSON, and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build import BuildOptions, build_shard_set
from tests.helpers.making import folder_source, picture
from tools.inspect_shards import main

SIZES = (120, 30, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspected")
    files = {f"{c}/{i}.jpg": picture(i, 20 + i % 3, 16) for c, size in enumerate(SIZES) for i in range(size)}
    build_shard_set(folder_source(root / "original", files), root / "set", BuildOptions())
    return root / "set"


def test_json_holds_counts_groups_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [entry["samples"] for entry in summary["samples_per_class"]] == list(SIZES)
    assert summary["imbalance_ratio"] == 30
    assert summary["groups"] == {
        "many": {"classes": 1, "samples": 120},
        "medium": {"classes": 1, "samples": 30},
        "few": {"classes": 1, "samples": 4},
    }
    assert summary["sizes"]["width"] == {"least": 20, "median": 21, "most": 22}
    assert summary["counts"] == {"jpeg": 154}


def test_text_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert "154 images of 3 classes" in output and "many n >= 101" in output
    assert "largest          class 0 120" in output


def test_an_empty_class_has_no_imbalance_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_source(tmp_path / "original", {"0/a.jpg": picture(0)}, num_classes=2)
    build_shard_set(source, tmp_path / "set", BuildOptions())
    assert main([str(tmp_path / "set")]) == 0
    assert "none, 1 classes are empty" in capsys.readouterr().out


def test_contact_sheet_shows_every_class_from_the_largest(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 128, 8 * 112, 3)
    tiles = sheet[:, :, :].reshape(3, 128, 8, 112, 3)[:, 20:90]
    filled = (tiles != 255).any(axis=(1, 3, 4))
    assert filled.sum(axis=1).tolist() == [8, 8, 4]


def test_a_folder_that_is_no_set_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
