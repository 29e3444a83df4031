"""Options: typed, checked before anything is loaded, and every recipe of the repository parses."""

import re
from pathlib import Path

import pytest
import yaml

from tests.helpers.runs import ROOT, arguments
from train.options import parse

DATA = Path("somewhere")


def test_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump({"method": {"name": "cmo", "loss": "bs"}, "epochs": 7, "data": {"preset": "cifar"}})
    )
    options = parse(
        [
            "--recipe",
            str(recipe),
            "--epochs",
            "9",
            "--data.train",
            "a",
            "--data.test",
            "b",
            "--method.weighted_alpha",
            "2",
        ]
    )
    assert (options.run.epochs, options.method.loss, options.method.weighted_alpha) == (9, "bs", 2.0)
    assert options.run.run_dir == Path("runs/mine-seed0")
    assert options.resolved["epochs"] == 9


def test_the_method_decides_which_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments(DATA, DATA, **{"method.name": "vanilla", "method.weighted_alpha": 1}))
    assert "weighted_alpha" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.learning_rate": 0.1}, "learning_rate"),
        ({"batch_size": "many"}, "batch_size"),
        ({"batch_size": 1}, "batch_size is 1, expected at least 2"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"data.preset": "imagnet"}, "data.preset 'imagnet' is unknown; expected one of"),
        ({"data.few_max": 200}, "few_max"),
        ({"model.name": "resnet5O"}, "similar names"),
        ({"schedule.milestones": "[5]"}, "1 milestones, 2 factors"),
        ({"method.loss": "hinge"}, "loss"),
    ],
)
def test_mistakes_end_the_program_with_a_message(
    changes: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments(DATA, DATA, **changes))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_method_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--method.name", "cmoo"])
    assert ended.value.code == 2
    assert re.search(r"method.name 'cmoo' is unknown; expected one of .*cmo.*vanilla", capsys.readouterr().err)


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optimizer: {lr: 0.1, warmup: 3}\n")
    with pytest.raises(SystemExit):
        parse(["--recipe", str(recipe), *arguments(DATA, DATA)])
    assert "warmup" in capsys.readouterr().err


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_recipe_parses_and_opens_with_its_command(recipe: Path) -> None:
    assert parse(["--recipe", str(recipe)]).run.epochs > 0
    head = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    assert any(f"--recipe recipes/{recipe.parent.name}/{recipe.name}" in line for line in head)
