"""The day with a GPU, at toy size: every piece runs, writes its file, and one that fails does not stop the next."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tools.benchmarks import gpu_day, gpu_probe
from tools.benchmarks.gpu_day import PIECES, Piece, Settings, main, run_piece

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 32-pixel pictures, train and test."""
    folder = tmp_path_factory.mktemp("pictures")
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (32, 32), (100 * k, 20 * i, 9)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "piece", [p for p in PIECES if p.name not in ("step", "loader", "train", "paste")], ids=lambda p: p.name
)
def test_every_piece_runs_at_toy_size(piece: Piece, pictures: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, None, pictures, toy=True)
    found = run_piece(piece, settings)
    assert found["outcome"] == "done", (tmp_path / f"{piece.name}.log").read_text()


def test_the_subjects_take_the_toy_size(tmp_path: Path) -> None:
    """Their runs at this size are tests of tests/tools/test_bench.py; here the command that the day gives."""
    (command,) = next(p for p in PIECES if p.name == "paste").commands(Settings(tmp_path, None, None, toy=True))
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert json.loads((tmp_path / "paste.json").read_text())


def test_a_failing_or_slow_piece_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = [sys.executable, "-c"]
    pieces = (
        Piece("fails", 60, lambda settings: iter([[*python, "raise SystemExit(3)"]])),
        Piece("slow", 1, lambda settings: iter([[*python, "import time; time.sleep(60)"]])),
        Piece("good", 60, lambda settings: iter([[*python, "print('figure')"]])),
    )
    monkeypatch.setattr(gpu_day, "PIECES", pieces)
    out, archive = tmp_path / "out", tmp_path / "back.tar.gz"
    assert main(["--out", str(out), "--pack", str(archive)]) == 1
    with tarfile.open(archive) as tar:
        assert {"fails.log", "good.log", "pieces.json"} <= set(tar.getnames())
        packed = tar.extractfile("pieces.json")
        assert packed is not None and len(json.load(packed)) == 3
    outcomes = {o["piece"]: o["outcome"] for o in json.loads((out / "pieces.json").read_text())}
    assert outcomes["fails"].startswith("exit status 3")
    assert outcomes["slow"] == "stopped after 1 s"
    assert outcomes["good"] == "done"
    assert "figure" in (out / "good.log").read_text()
    assert "good: done" in capsys.readouterr().out


def test_what_a_stopped_piece_has_started_ends_with_it(tmp_path: Path) -> None:
    """It would hold the GPU beside the next piece."""
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); "
    command = [sys.executable, "-c", f"{code}import time; time.sleep(60)"]
    found = run_piece(Piece("slow", 3, lambda settings: iter([command])), Settings(tmp_path, None, None, toy=False))
    assert found["outcome"] == "stopped after 3 s"
    pid = int((tmp_path / "slow.log").read_text().splitlines()[-1])
    until = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_script_takes_python3_where_there_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "benchmarks/gpu").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "benchmarks/gpu/run.sh", tmp_path / "benchmarks/gpu/run.sh")
    (tmp_path / "bin/python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/python3").chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    path.pop("PYTHON", None)
    command = [tmp_path / "benchmarks/gpu/run.sh", "--out", "x"]
    ended = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "-m tools.benchmarks.gpu_day --out x"


def test_the_tests_that_need_a_gpu_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = {str(path) for path in gpu_day._gpu_test_files()}
    assert "tests/train/test_step_graphs.py" in found
    assert "tests/train/test_page_in_browser.py" not in found  # needs a browser


def test_the_whole_day_is_meant_to_take_25_minutes_and_no_piece_over_8() -> None:
    assert sum(piece.seconds for piece in PIECES) <= 25 * 60
    assert max(piece.seconds for piece in PIECES) <= 8 * 60


def test_a_finding_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_probe, "copy_bandwidth", lambda *a: 1 / 0)
    monkeypatch.setattr(gpu_probe, "region_decoding_failure", lambda bench: "ended by SIGSEGV")
    assert gpu_probe.main(["--out", str(tmp_path / "probe.json"), "--toy"]) == 0
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["copy_gigabytes_per_second"].startswith("failed: ZeroDivisionError")
    assert found["grey_levels_between_device_and_cpu"]["max"] == 0  # both are the CPU here
    assert found["region_decoding_failure"] == "ended by SIGSEGV"
