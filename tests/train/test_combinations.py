"""docs/combinations.md, row by row: what is possible takes two steps, what is refused says why."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import ROOT, arguments
from tests.helpers.shard_sets import small_images
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context
from train.methods import find_method
from train.options import parse

PAGE = (ROOT / "docs" / "combinations.md").read_text()
_BEFORE, POSSIBLE, REFUSED = re.split(r"^## .*$", PAGE, flags=re.MULTILINE)
ALWAYS = {"plain_first": 0, "plain_last": 0}  # no plain epochs


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
def test_possible_combinations_take_two_steps(options: str, data: Path, meta: Path, tmp_path: Path) -> None:
    """With CMO's coin, one that mixes and one that does not."""
    row = changes(options)
    known = {field.name for field in fields(find_method(str(row["method.name"])).Options)}
    row |= {f"method.{name}": value for name, value in ALWAYS.items() if name in known}
    if row["method.name"] == "metasaug":
        row |= {"data.meta": meta, "method.meta_from_epoch": 0}
    run = make_run(parse(arguments(data, tmp_path / "run", max_steps=2, **row)))
    rule = run.plan.mix_rule
    if rule is not None and rule.probability:
        pastes = [run.plan.pastes(0, step) for step in (0, 1)]
        assert pastes == ([True, False] if rule.probability < 1 else [True, True])
    model = run.trainer.bare_model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert take_steps(run) == 2
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, before[name]) is not run.method.trainable(name), name


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
    for recipe in ("cifar100-lt-ce-cmo", "cifar100-lt-glmc-cmo"):
        options = parse([f"--recipe={ROOT / 'recipes' / recipe}.yaml"])
        method = find_method(options.method_name, vars(options.method)).make(options.method, context((9, 4, 2)))
        rules.append(method.mix_rule())
        streams.append([(stream.name, stream.sampling, stream.when) for stream in method.streams()])
    assert rules[0] == rules[1]
    assert streams[0] == streams[1]
