"""The command that verifies: silent faults become exit code 1 and a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.build import BuildOptions, build_shard_set
from tests.helpers.making import folder_source, pictures
from tools.verify_shards import main


def test_exit_code_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    build_shard_set(folder_source(tmp_path / "original", pictures(9)), folder, BuildOptions())
    assert main([str(folder)]) == 0
    assert "whole" in capsys.readouterr().out
    tar = folder / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    assert main([str(folder), str(tmp_path / "nowhere")]) == 1
    output = capsys.readouterr().out
    assert "fault: " in output and "000000.tar: sample" in output
    assert f"{folder}: 2 faults" in output
    assert "nowhere: no such folder" in output
