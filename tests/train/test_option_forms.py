"""Old names, lists without brackets, ~ as home, default run folders."""

from pathlib import Path

import pytest
import yaml

from train.option_forms import RENAMED, current_arguments, current_recipe
from train.options import parse

LISTS = {"trackers", "schedule.milestones"}
DATA = ["--data.train", "data/birds/train", "--data.test", "data/birds/test"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--trackers", "wandb"], ["--trackers", "[wandb]"]),
        (["--trackers=wandb"], ["--trackers", "[wandb]"]),
        (["--trackers", "a", "b", "--seed", "1"], ["--trackers", "[a,b]", "--seed", "1"]),
        (["--trackers", "a,b"], ["--trackers", "[a,b]"]),
        (["--trackers", "[a, b]"], ["--trackers", "[a, b]"]),
        (["--trackers", "none"], ["--trackers", "[]"]),
        (["--schedule.milestones", "3", "5"], ["--schedule.milestones", "[3,5]"]),
        (["--optimizer.lr=-1"], ["--optimizer.lr=-1"]),
    ],
)
def test_lists_need_no_brackets(given: list[str], expected: list[str]) -> None:
    assert current_arguments(given, LISTS) == expected


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_an_old_name_is_refused_with_the_new_one(old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section, name = old.split(".")
    recipe = tmp_path / "old.yaml"
    recipe.write_text(yaml.safe_dump({section: {"name": "cmo", name: 3}}))
    for arguments in ([*DATA, f"--{old}", "3"], [*DATA, f"--{old}=3"], ["--recipe", str(recipe), *DATA]):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 2
        assert f"train: error: {old} is now called {RENAMED[old]}" in capsys.readouterr().err


def test_the_old_name_of_presets_is_taken_and_home_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert current_recipe({"data": {"recipe": "cifar"}}, LISTS) == {"data": {"preset": "cifar"}}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"recipe": "cifar", "train": "~/a", "test": "~/b"}, "trackers": "wandb"}))
    options = parse(["--recipe", str(recipe), "--run_dir=~/runs/x", "--resume=~/c.pt"])
    assert (options.data.preset, options.run.trackers) == ("cifar", ("wandb",))
    assert (options.data.train, options.data.test) == ("/home/somebody/a", "/home/somebody/b")
    assert options.run.run_dir == Path("/home/somebody/runs/x")
    assert options.run.resume == "/home/somebody/c.pt"
    assert options.resolved["data"]["train"] == "/home/somebody/a"


def test_the_default_folder_tells_data_method_and_loss() -> None:
    assert parse([*DATA, "--method.loss", "bs"]).run.run_dir == Path("runs/birds-cmo-bs-seed0")


@pytest.mark.parametrize("arguments", [[*DATA, "--method.los", "bs"], DATA[:2]])
def test_abbreviations_and_runs_that_measure_nothing_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
