"""The command `longtail`: quick to answer, clear about mistakes, and nothing of it missing."""

import importlib.util
import re
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from longtail.cli import COMMANDS, main
from tests.helpers.runs import ROOT
from train import early, help_text
from train.cautions import network_cautions
from train.methods.presets import METHOD_PRESETS
from train.methods.registry import find_method, method_names
from train.models.backbone_views import BACKBONE_PRESETS
from train.option_sources import method_options, part_names, run_options, whole_methods
from train.options import _SECTIONS, RunOptions

MISTAKES = (
    (["--method.los", "bs"], "--method.los is not an option; did you mean --method.loss"),
    (["--learning-rate", "0.1"], "did you mean --optimizer.lr?"),
    (["--batch-size", "many"], "--batch_size is 'many', expected a whole number"),
    (["--mixed-precision", "fp8"], "expected one of no, bf16"),
    (["--method.name", "cmoo"], "did you mean cmo?"),
    (["--recipe", "digits-lt/bs-cmoo"], "did you mean digits-lt/bs-cmo"),
)


def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "longtail", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True), time.perf_counter() - started


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--method.los", "bs"]])
def test_help_and_mistakes_are_quick_because_they_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = "{'torch', 'timm', 'accelerate', 'matplotlib'}"
    script = (
        f"import sys; from longtail.cli import main; main({arguments!r}); sys.exit(bool({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[m[0][0] for m in MISTAKES])
def test_a_mistake_is_one_line_with_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train: error: ") and error.count("\n") == 1 and message in error


def test_an_unknown_command_names_the_similar_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tain"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_every_command_is_there_and_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for name, (module, _, text) in COMMANDS.items():
        assert importlib.util.find_spec(module) is not None, name
        assert f"  {name} " in out and text in out


def test_options_read_from_the_sources_are_those_of_the_classes() -> None:
    expected = {f"{section}.{f.name}" for section, options in _SECTIONS.items() for f in fields(options)}
    assert set(run_options()) == expected | {f.name for f in fields(RunOptions)}
    for name in method_names():
        real = {f"method.{f.name}" for f in fields(find_method(name).Options)}
        if name in whole_methods():
            assert real == set(method_options(whole=name))
        else:
            preset = METHOD_PRESETS[name]
            parts = {kind: getattr(preset, kind) for kind in ("mixing", "objective", "stage")}
            assert real == set(method_options(parts)), name
    assert sorted({*METHOD_PRESETS, *whole_methods()}) == method_names()


def test_the_help_has_every_option_once_and_common_ones_first() -> None:
    text = help_text.text("longtail train", [])
    shown = re.findall(r"^  --(\S+)", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    assert set(run_options()) < set(shown)
    assert shown.index("epochs") < shown.index("method.plain_first") < shown.index("schedule.ends_at_zero")


def test_methods_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in [*method_names(), *(n for kind in ("mixing", "objective", "stage") for n in part_names(kind))]:
        assert re.search(rf"^  {name} +\S", out, re.MULTILINE), name
    assert "CVPR 2022" in out


def test_presets_and_recipes_are_listed_and_a_recipe_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0 and main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "imagenet: 224 pixels" in listed and all(f"  {name}: " in listed for name in BACKBONE_PRESETS)
    assert main(["recipes", "digits-lt/ce"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes/digits-lt/ce.yaml").read_text()


def test_several_processes_are_accelerates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def execve(program: str, command: list[str], environment: dict[str, str]) -> None:
        started.append((command, environment))
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", execve)
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "digits-lt/ce", "--processes", "8"])
    ((command, environment),) = started
    assert "--num_processes 8 -m train --recipe digits-lt/ce" in " ".join(command)
    assert environment["PYTHONSAFEPATH"] == "1"
    assert main(["train", "--processes", "none"]) == 2
    assert "expected a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("resnet32", 32, True),
        ("resnet32", 224, False),
        ("resnet32-bbn", 32, True),
        ("resnet50", 224, True),
        ("resnet50", 32, False),
    ],
)
def test_a_network_for_other_images_is_warned_of(name: str, size: int, fits: bool) -> None:
    assert bool(network_cautions(name, size)) != fits


def test_names_take_dashes_and_switches_no_value() -> None:
    words = early.normalised(["--mixed-precision", "bf16", "--dry-run", "--model.pretrained", "--run-dir", "a-b"])
    assert words == ["--mixed_precision", "bf16", "--dry_run=true", "--model.pretrained=true", "--run_dir", "a-b"]
    assert early.normalised(["--deterministic", "false"]) == ["--deterministic", "false"]
