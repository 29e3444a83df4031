"""What commands share: one style of errors, statuses, closed pipes, ~."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from shards.commandline import (
    FAILED,
    INTERRUPTED,
    USAGE,
    Parser,
    UsageError,
    finite_number,
    home_path,
    run_command,
    whole_number,
)
from shards.files import OutsideError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("no such device"), USAGE, "no such device"),
        (ValueError("damaged"), FAILED, "damaged"),
        (PermissionError(13, "Permission denied", "/x/y"), FAILED, "/x/y: Permission denied"),
        (IsADirectoryError(21, "Is a directory", b"/x"), FAILED, "/x: Is a directory"),
        (OutsideError("the disk is full"), FAILED, "the disk is full"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_what_a_user_can_cause_is_a_line_and_a_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise error

    assert run_command("some", body) == status
    assert capsys.readouterr().err == f"some: error: {message}\n"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def body() -> int:
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        run_command("some", body)


@pytest.mark.parametrize(
    "arguments", [["--numb", "3"], ["--number", "0"], ["--number", "x"], ["--share", "nan"], ["y"]]
)
def test_wrong_values_and_abbreviations_are_usage_errors(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser(prog="python -m tools.some")
    parser.add_argument("--number", type=whole_number(1))
    parser.add_argument("--share", type=finite_number)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == USAGE
    assert capsys.readouterr().err.startswith("some: error: ")


def test_home_is_meant_where_no_shell_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert home_path("~/x") == Path("/home/somebody/x")
    with pytest.raises(argparse.ArgumentTypeError):
        home_path("~nobody-of-this-name/x")


def test_a_closed_pipe_ends_a_command_without_a_word() -> None:
    code = (
        "from shards.commandline import run_command\n"
        "def body():\n"
        "    for i in range(100000): print('a long line of text', i)\n"
        "    return 0\n"
        "raise SystemExit(run_command('some', body))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("a long line")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 141
