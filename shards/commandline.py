"""What all commands share: parsing of values, reporting of errors, and exit statuses."""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from shards.files import OutsideError

FAILED = 1
USAGE = 2  # the command line itself is wrong; nothing was read
INTERRUPTED = 130  # the shell's status for SIGINT
PIPE_CLOSED = 141  # the shell's status for SIGPIPE


class UsageError(ValueError):
    """An invalid value on the command line; the command exits with status 2."""


class NoPathError(argparse.ArgumentTypeError, ValueError):
    """A path on a command line or in a recipe that cannot be resolved."""


class Parser(argparse.ArgumentParser):
    """Rejects abbreviations, accepts "_" for "-", suggests similar options, and reports errors as all commands do."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but option names may use "-" or "_"."""
        return super().parse_known_args([*map(_with_dashes, sys.argv[1:] if args is None else args)], namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        if message.startswith("unrecognized arguments: --"):
            given = message.split()[2].partition("=")[0]
            options = [name for action in self._every_action() for name in action.option_strings]
            if similar := difflib.get_close_matches(given, options, 2):
                message += f"; did you mean {' or '.join(similar)}?"
        say_error(self.prog.removeprefix("python -m ").removeprefix("tools."), f"{message}; see {self.prog} --help")
        sys.exit(USAGE)

    def _every_action(self) -> list[argparse.Action]:
        """Its options and those of its subcommands: argparse lets the outer parser report unknown options."""
        inner = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return self._actions + [a for one in inner for parser in one.choices.values() for a in parser._actions]


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word


class OldPresetName(argparse.Action):
    """`--recipe`, the old name of `--preset`."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        """Accept it, and print the new name."""
        print(f"{parser.prog}: --recipe is now called --preset", file=sys.stderr)
        setattr(namespace, self.dest, value)


def home_path(text: str) -> Path:
    """A path in which `~` means the home folder, even if the shell did not expand it (`--out=~/x`)."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise NoPathError(f"{text}: {error}") from None


def whole_number(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value}, expected at least {minimum}")
        return value

    return parse


def finite_number(text: str) -> float:
    """An argparse type: a number, not infinite and not NaN."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}, expected a finite number")
    return value


@contextmanager
def importing() -> Iterator[None]:
    """Wraps a command's imports of torch and packages that need it: half a million objects, none of which is freed.

    Repeated garbage collection while their number grows takes a quarter of the import time, and a collection later
    a third of a second. So these objects are exempt until the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # otherwise extension modules report leaks


def say_error(name: str, message: str) -> None:
    """Print an error on standard error, in the same style for all commands."""
    print(f"{name}: error: {message}", file=sys.stderr)


def run_command(name: str, body: Callable[[], int], expected: tuple[type[Exception], ...] = ()) -> int:
    """Exit status of `body`. Errors that a user can cause give a message and a status instead of a traceback.

    Args:
        name: the command's name, for messages.
        expected: errors in addition to ValueError, OSError and OutsideError whose message tells the user what to do.
    """
    for stream in (sys.stdout, sys.stderr):  # file names may not be text, and terminals may lack letters
        with suppress(AttributeError, ValueError):  # replaced streams in a test or notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    told: tuple[type[Exception], ...] = (ValueError, OSError, OutsideError, *expected)
    try:
        status = body()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # such as `| head`
        stop_printing()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        say_error(name, "interrupted")
        return INTERRUPTED
    except UsageError as error:
        say_error(name, str(error))
        return USAGE
    except told as error:
        say_error(name, described(error))
        return FAILED


def described(error: BaseException) -> str:
    """The message of an error; the system's errors about a file start with its name."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def tell(text: str) -> None:
    """Print if anyone still reads the output; work continues regardless."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        stop_printing()


def stop_printing() -> None:
    """Discard standard output: its reader is gone, and Python would report that again at exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
