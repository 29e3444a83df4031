"""Licence, citation, version, provenance, and the README's picture."""

import re
import subprocess
import tomllib
from pathlib import Path
from statistics import mean

import pytest
import yaml

import longtail
from longtail.cli import main
from shards.commandline import Parser
from tests.helpers.runs import ROOT
from tools.front_picture import PANELS, accuracies, draw
from train import provenance


def test_the_licence_is_apache_2_everywhere_and_the_version_is_one() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "version" not in project
    assert citation["version"] == longtail.__version__
    assert re.search(rf"^## {re.escape(longtail.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_commit_is_this_projects_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "rev-parse", "--show-toplevel"]
    top = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if top and Path(top).resolve() == ROOT.resolve():
        assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", provenance.commit() or "")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "_CODE", tmp_path / "venv" / "site-packages")
    (tmp_path / "venv" / "site-packages").mkdir(parents=True)
    assert provenance.commit() is None


def test_the_picture_is_of_the_results_that_it_names(tmp_path: Path) -> None:
    draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    digits = next(iter(PANELS.values()))
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, pattern in digits.items():
        assert f"| {mean(accuracies(pattern)['few']):.1f} ± " in text, name


def test_commands_take_both_signs_and_name_similar_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="python -m tools.some")
    parser.add_argument("--batch-size", type=int)
    assert parser.parse_args(["--batch_size=3"]).batch_size == 3
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--batch-sise", "3"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("some: error: unrecognized arguments: --batch-sise 3; did you mean")


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"longtail {longtail.__version__}\n"
