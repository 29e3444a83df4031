"""docs/combinations.md: every mixing × objective × stage takes two steps or is refused with the reason of the page."""

import re
import shlex
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch

from tests.helpers.combinations import SMALL
from tests.helpers.runs import ROOT, arguments
from tests.helpers.shard_sets import small_images
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context
from train.checkpoints.files import save
from train.methods.registry import KINDS, find_method, part_names
from train.options import parse

PAGE = (ROOT / "docs" / "combinations.md").read_text(encoding="utf-8")
_BEFORE, PRODUCT, POSSIBLE, REFUSED = re.split(r"^## .*$", PAGE, flags=re.MULTILINE)
ALWAYS = {"plain_first": 0, "plain_last": 0}  # no plain epochs
PARTS = {kind: part_names(package, base) for kind, (package, base) in KINDS.items()}


def product_table() -> dict[tuple[str, str], dict[str, str]]:
    """The page's table: (mixing, objective) → stage → "" for what runs, else the number of its reason."""
    lines = [line for line in PRODUCT.splitlines() if line.startswith("|")]
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): dict(zip(titles[2:], row[2:], strict=True)) for row in rows}


def reasons() -> dict[str, str]:
    """The numbered reasons below the table."""
    return dict(re.findall(r"^(\d+)\. \"(.*)\"$", PRODUCT, flags=re.MULTILINE))


TABLE, REASONS = product_table(), reasons()
COMBINATIONS = list(product(PARTS["mixing"], PARTS["objective"], PARTS["stage"]))


@pytest.fixture(scope="module")
def first_stages(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A checkpoint of a first stage under each objective."""
    folder = tmp_path_factory.mktemp("first-stages")
    for objective in PARTS["objective"]:
        chosen = {"method.name": "vanilla", "method.objective": objective}
        chosen |= {
            f"method.{name}": value for name, value in SMALL.items() if name in known("whole", "none", objective)
        }
        run = make_run(parse(arguments(data, folder / "run", **chosen)))
        save(folder / f"{objective}.pt", {"model": run.trainer.bare_model.state_dict()})
    return folder


def known(stage: str, mixing: str, objective: str) -> set[str]:
    """The options of a combination."""
    spec = find_method("vanilla", {"mixing": mixing, "objective": objective, "stage": stage})
    return {field.name for field in fields(spec.Options)}


def test_the_page_has_every_part() -> None:
    assert set(TABLE) == {(mixing, objective) for mixing, objective, _ in COMBINATIONS}
    assert all(set(cells) == set(PARTS["stage"]) for cells in TABLE.values())
    assert {cell for cells in TABLE.values() for cell in cells.values()} <= {"yes", *REASONS}


@pytest.mark.parametrize(("mixing", "objective", "stage"), COMBINATIONS)
def test_every_combination_runs_or_says_why_not(
    mixing: str, objective: str, stage: str, data: Path, first_stages: Path, tmp_path: Path
) -> None:
    options = known(stage, mixing, objective)
    row = {"method.name": "vanilla", "method.mixing": mixing, "method.objective": objective, "method.stage": stage}
    row |= {f"method.{name}": value for name, value in {**ALWAYS, **SMALL}.items() if name in options}
    if stage != "whole":
        row["model.init_from"] = str(first_stages / f"{objective}.pt")
    command = arguments(data, tmp_path / "run", max_steps=2, **row)
    answer = TABLE[mixing, objective][stage]
    if answer != "yes":
        with pytest.raises(ValueError, match=re.escape(REASONS[answer])):
            make_run(parse(command))
        return
    take_two_steps(command)


def take_two_steps(command: list[str]) -> None:
    """What is trained has moved, and nothing else."""
    run = make_run(parse(command))
    model = run.trainer.bare_model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert take_steps(run) == 2
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all(), name
        if name.startswith("encoder_k."):  # follows without being trained
            continue
        assert torch.equal(value, before[name]) is not run.method.trainable(name), name


def rows(section: str, columns: int) -> list:
    """The rows of a section's table as test parameters, without the column that names them."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| `--" in line]
    assert cells
    assert {len(row) for row in cells} == {columns}
    return [pytest.param(*row[1:], id=row[0]) for row in cells]


def changes(options: str) -> dict[str, object]:
    """The options of a row by name."""
    words = shlex.split(options.strip("`"))
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_images(tmp_path_factory.mktemp("balanced") / "meta", (2, 2, 2, 2)).path


@pytest.mark.parametrize("options", rows(POSSIBLE, 2))
def test_other_combinations_that_are_possible_take_two_steps(
    options: str, data: Path, meta: Path, tmp_path: Path
) -> None:
    row = changes(options)
    chosen = {name.removeprefix("method."): value for name, value in row.items()}
    have = {field.name for field in fields(find_method(str(row["method.name"]), chosen).Options)}
    row |= {f"method.{name}": value for name, value in ALWAYS.items() if name in have and f"method.{name}" not in row}
    if row["method.name"] == "metasaug":
        row |= {"data.meta": meta, "method.meta_from_epoch": 0}
    take_two_steps(arguments(data, tmp_path / "run", max_steps=2, **row))


@pytest.mark.parametrize(("options", "reason"), rows(REFUSED, 3))
def test_other_combinations_are_refused_with_the_reason_of_the_page(
    options: str, reason: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as refused:
        make_run(parse(arguments(data, tmp_path / "run", **changes(options))))
    (answer,) = re.findall(r'"(.*?)"', reason)
    assert reason == f'"{answer}"'
    assert answer in f"{refused.value} {capsys.readouterr().err}"


def test_a_recipe_with_an_option_that_a_method_is_without_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("method: {name: ncl, loss: ldam}")
    with pytest.raises(SystemExit):
        parse(["--recipe", str(tmp_path / "mine.yaml"), "--data.train", "a", "--data.test", "b"])
    assert "method.loss: the balanced softmax is part of NCL's equations" in capsys.readouterr().err


def test_glmc_under_cmo_mixes_the_samples_that_cmo_does_when_cmo_does() -> None:
    rules, streams = [], []
    for recipe in ("cifar100-lt/ce-cmo", "cifar100-lt/glmc-cmo"):
        options = parse([f"--recipe={ROOT / 'recipes' / recipe}.yaml"])
        method = find_method(options.method_name, vars(options.method)).make(options.method, context((9, 4, 2)))
        rules.append(method.objective.mix_rule())
        streams.append([(stream.name, stream.sampling, stream.when) for stream in method.objective.streams()])
    assert rules[0] == rules[1]
    assert streams[0] == streams[1]


def test_options_of_other_parts_say_where_they_belong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--method.name", "ride", "--method.mixup_prob", "0.5", "--data.train", "a", "--data.test", "b"])
    assert "method.mixup_prob: an option of --method.mixing paste" in capsys.readouterr().err
