"""Two processes are one: the same samples, the same gradients, exact evaluation."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.gradients import CASES, accumulations
from tests.helpers.processes import start
from tests.helpers.runs import COUNTS, ROOT, arguments, records


def gradients(data: Path, folder: Path, processes: int) -> dict[str, list[torch.Tensor]]:
    out = folder / f"{processes}.pt"
    given = [str(processes), str(out), str(data), str(folder / "run")]
    ranks = start(given, folder / f"{processes}.log", processes, module="tests.helpers.gradients")
    assert ranks.wait() == [0] * processes, ranks.output()
    return torch.load(out)


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    folder = tmp_path_factory.mktemp("gradients")
    return gradients(data, folder, 1), gradients(data, folder, 2)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_processes_equal_those_of_one(both: tuple[dict, dict], case: str) -> None:
    reference = both[0][f"{case} in 1"]
    drops_last = case in ("lade", "tde", "bbn", "paco", "gpaco", "fsa")
    assert len(reference) == sum(COUNTS) // 8 + (not drops_last)  # the last of four is the short batch
    cut = [gradients[f"{case} in {n}"] for i, gradients in enumerate(both, 1) for n in accumulations(case, i)]
    assert len(cut) >= 2
    assert max(float(gradient.abs().max()) for gradient in reference) > 1e-3
    for found in cut:
        for expected, gradient in zip(reference, found, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_a_run_under_accelerate_launch_evaluates_each_image_once(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "longtail", "train", "--processes", "2", *arguments(data, run_dir, epochs=1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes: 2" in done.stdout
    assert records(run_dir)[-1]["test"]["samples"] == 12
