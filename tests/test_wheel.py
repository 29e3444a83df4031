"""The wheel, without the checkout: its commands in an empty folder that has a train.py of its own."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from longtail.version import VERSION
from tests.helpers.runs import ROOT

TINY = ["--epochs=1", "--max_steps=2", "--batch_size=8", "--trackers=none", "--device=cpu", "--evaluate_every=1"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel and nothing else of this project."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    # Built from a copy of what git would give: the source tree keeps no build folder.
    source = folder / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if name.split("/")[0] in ("tests", "benchmarks", "docs") or not (ROOT / name).exists():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("longtail-*.whl")
    assert wheel.name.startswith(f"longtail-{VERSION}-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository of somebody else, with modules of the names of this project's."""
    folder = tmp_path_factory.mktemp("somebody")
    for name in ("train", "tools", "pipeline"):
        (folder / f"{name}.py").write_text("raise SystemExit('this is somebody else')\n")
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def longtail(installed: Path, workplace: Path, *arguments: str) -> str:
    """The command as its script runs it: the folder of the script comes first, never the current one."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    script = "import sys; from longtail.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_it_holds_what_it_needs_and_its_licence(installed: Path) -> None:
    for name in ("longtail/recipes/digits-lt/bs-cmo.yaml", "longtail/recipes/tables.yaml", "longtail/py.typed"):
        assert (installed / name).is_file(), name
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert not (installed / "tests").exists()


def test_digits_from_build_to_prediction(installed: Path, workplace: Path) -> None:
    for split in ("train", "test"):
        longtail(installed, workplace, "build", "digits-lt", "--split", split, "--out", f"data/digits-lt/{split}")
    longtail(installed, workplace, "train", "--recipe", "digits-lt/bs-cmo", *TINY)
    result = json.loads((workplace / "runs/digits-lt-bs-cmo-seed0/result.json").read_text())
    assert result["commit"] is None  # never that of the repository around it
    picture = workplace / "picture.png"
    script = "from PIL import Image; Image.new('RGB', (8, 8)).save('picture.png')"
    subprocess.run([sys.executable, "-c", script], cwd=workplace, check=True, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert picture.is_file()
    best = "runs/digits-lt-bs-cmo-seed0/checkpoints/best.pt"
    assert "picture.png" in longtail(installed, workplace, "predict", "--checkpoint", best, "picture.png")


def test_a_sweep_says_what_it_would_run(installed: Path, workplace: Path) -> None:
    out = longtail(installed, workplace, "sweep", "--tables", "2", "--rows", "BS + CMO*", "--dry-run")
    assert "-m train" in out and str(installed / "longtail" / "recipes") in out


@pytest.mark.slow
def test_a_benchmark_runs(installed: Path, workplace: Path) -> None:
    assert "paste" in longtail(installed, workplace, "bench", "paste", "--quick")
