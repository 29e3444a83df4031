"""Comparing finished runs: seeds become one row, other data are refused."""

import json
from pathlib import Path

import pytest

from tools.compare_runs import main


def write_result(
    folder: Path, few: float, seed: int, checksum: str = "a", speed: float = 100.0, threads: int = 2
) -> str:
    accuracies = {"all": 50.0, "many": 90.0, "medium": None, "few": few}
    result = {
        "test": {"last": accuracies, "best": accuracies},
        "group_rule": "many n >= 101, medium 20 <= n <= 100, few n <= 19",
        "options": {"seed": seed, "epochs": 5},
        "cost": {"images_per_second": speed, "peak_memory_gb": speed / 50},
        "derived": {"processes": 1},
        "hardware": f"CPU, {threads} threads",
        "data": {"train": {"checksum": checksum}, "test": {"checksum": "t"}},
    }
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    return str(folder)


def test_seeds_become_a_mean_and_a_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_result(tmp_path / f"ce-seed{seed}", few, seed) for seed, few in enumerate((10.0, 20.0, 30.0))]
    assert main([*runs, "--out", str(tmp_path / "table.md")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| ce |"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "ce",
        "3",
        "5",
        "50.0 ± 0.0",
        "90.0 ± 0.0",
        "–",
        "20.0 ± 10.0",
    ]
    assert row in (tmp_path / "table.md").read_text()


def test_runs_on_other_data_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_result(tmp_path / name, 10.0, 0, checksum=name) for name in ("a", "b")]
    assert main(runs) == 1
    assert "2 different training sets" in capsys.readouterr().err


def test_an_unfinished_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    assert "is the run finished?" in capsys.readouterr().err


def test_cost_is_relative_to_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_result(tmp_path / name, 10.0, seed, speed=speed)
        for name, seed, speed in (("ce-seed0", 0, 90.0), ("ce-seed1", 1, 110.0), ("ncl-seed0", 0, 25.0))
    ]
    assert main([*runs, "--cost"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| ce", "| ncl"))]
    assert [[cell.strip() for cell in row.strip("|").split("|")][-2:] for row in rows] == [
        ["1.00", "2.00"],
        ["0.25", "0.50"],
    ]


def test_the_cost_on_other_hardware_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_result(tmp_path / str(threads), 10.0, 0, threads=threads) for threads in (2, 16)]
    assert main(runs) == 0
    assert main([*runs, "--cost"]) == 1
    assert "1 processes on CPU, 16 threads and 1 processes on CPU, 2 threads" in capsys.readouterr().err


def test_a_result_without_cost_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(write_result(tmp_path / "old", 10.0, 0))
    result = json.loads((run / "result.json").read_text())
    del result["cost"]
    (run / "result.json").write_text(json.dumps(result))
    assert main([str(run), "--cost"]) == 1
    assert "old/result.json has no cost" in capsys.readouterr().err


def test_unfinished_and_foreign_folders_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = write_result(tmp_path / "ce-seed0", 10.0, 0)
    for name, text in {"cut": '{"test": ', "list": "[]", "other": "{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "file.md").write_text("mine")
    assert main([finished, *(str(tmp_path / n) for n in ("cut", "list", "other", "unfinished", "file.md"))]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("compare_runs: left out: ") == 5
    assert "| ce | 1 |" in printed.out
    assert main([finished, "--out", str(tmp_path / "file.md")]) == 1
    assert (tmp_path / "file.md").read_text() == "mine"
    assert main([finished, "--out", str(tmp_path / "new" / "table.md")]) == 0
    assert main([finished, "--out", str(tmp_path / "new" / "table.md")]) == 0  # its own


def test_sets_are_the_same_where_their_images_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_result(tmp_path / f"ce-seed{seed}", 10.0, seed, checksum=f"files {seed}") for seed in range(2)]
    assert main(runs) == 1
    for run in runs:
        path = Path(run) / "result.json"
        result = json.loads(path.read_text())
        result["data"]["train"]["images_checksum"] = "images"
        path.write_text(json.dumps(result))
    capsys.readouterr()
    assert main(runs) == 0
    assert "| ce | 2 |" in capsys.readouterr().out
