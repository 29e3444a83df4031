"""The command that verifies: silent faults become exit code 1 and a name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.build import BuildOptions, build_shard_set
from tests.helpers.making import folder_source, pictures
from tools.inspect_shards import main as inspect
from tools.verify_shards import main


def test_exit_code_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    build_shard_set(folder_source(tmp_path / "original", pictures(9)), folder, BuildOptions())
    assert main([str(folder)]) == 0
    assert "intact" in capsys.readouterr().out
    tar = folder / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    assert main([str(folder), str(tmp_path / "nowhere")]) == 1
    output = capsys.readouterr().out
    assert "fault: " in output and "000000.tar: sample" in output
    assert f"{folder}: 2 faults" in output
    assert "nowhere: no such folder" in output


def _wrong_places(root: Path) -> list[Path]:
    (root / "file").write_bytes(b"no folder")
    (root / "empty").mkdir()
    (root / "run" / "checkpoints").mkdir(parents=True)
    (root / "run" / "options.yaml").write_text("epochs: 1")
    (root / "odd").mkdir()
    (root / "odd" / "dataset.json").mkdir()  # a folder where a file is expected
    (root / "text").mkdir()
    (root / "text" / "dataset.json").write_bytes(b"\xff\xfe{")
    (root / "loop").symlink_to(root / "loop")
    return [root / name for name in ("nowhere", "file", "file/under", "empty", "run", "odd", "text", "loop", "n" * 300)]


@pytest.mark.parametrize("command", [main, inspect, lambda given: inspect([*given, "--json"])])
def test_places_that_hold_no_set_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int]
) -> None:
    for place in _wrong_places(tmp_path):
        assert command([str(place)]) == 1, place
        output = capsys.readouterr()
        assert str(place) in output.out + output.err, place
        assert all(": error: " in line for line in output.err.splitlines()), output.err


@pytest.mark.parametrize("command", [main, inspect])
@pytest.mark.parametrize("given", [[], ["--fast", "x"], ["~nobody-of-this-name/x"]])
def test_usage_errors_have_status_2(
    capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int], given: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(given)
    assert ended.value.code == 2
    assert "_shards: error: " in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["verify_shards", "inspect_shards"])
def test_a_closed_pipe_is_no_error(tmp_path: Path, tool: str) -> None:
    build_shard_set(folder_source(tmp_path / "original", pictures(9)), tmp_path / "set", BuildOptions())
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", f"tools.{tool}", str(tmp_path / "set")]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert ended.returncode in (0, 141) and ended.stderr == ""


def test_the_sheet_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect([str(tmp_path), "--contact-sheet", str(tmp_path)]) == 2
    assert "is a folder; give the name" in capsys.readouterr().err
