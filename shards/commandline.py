"""What all commands share: how they read values, how they say errors, and their exit statuses."""

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
INTERRUPTED = 130  # as a shell reports SIGINT
PIPE_CLOSED = 141  # as a shell reports SIGPIPE


class UsageError(ValueError):
    """A value on the command line that cannot be meant; the command ends with exit status 2."""


class NoPathError(argparse.ArgumentTypeError, ValueError):
    """A path that names no place, on a command line or in a recipe."""


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations and "_" for "-", names similar options, and says errors as all commands do."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, from a command line with either sign in the names of options."""
        return super().parse_known_args([*map(_with_dashes, sys.argv[1:] if args is None else args)], namespace)

    def error(self, message: str) -> NoReturn:
        """End with exit status 2."""
        if message.startswith("unrecognized arguments: --"):
            given = message.split()[2].partition("=")[0]
            options = [name for action in self._every_action() for name in action.option_strings]
            if similar := difflib.get_close_matches(given, options, 2):
                message += f"; did you mean {' or '.join(similar)}?"
        say_error(self.prog.removeprefix("python -m ").removeprefix("tools."), f"{message}; see {self.prog} --help")
        sys.exit(USAGE)

    def _every_action(self) -> list[argparse.Action]:
        """Its options, and those of its subcommands: argparse lets the outer parser say what is unknown."""
        inner = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return self._actions + [a for one in inner for parser in one.choices.values() for a in parser._actions]


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word


class OldPresetName(argparse.Action):
    """`--recipe`, as `--preset` was called."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        """Take it, and say its name of today."""
        print(f"{parser.prog}: --recipe has another name now: --preset", file=sys.stderr)
        setattr(namespace, self.dest, value)


def home_path(text: str) -> Path:
    """A path in which `~` means the home folder, also where no shell has replaced it (`--out=~/x`)."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise NoPathError(f"{text}: {error}") from None


def whole_number(minimum: int) -> Callable[[str], int]:
    """A type of argparse: a whole number of at least `minimum`."""

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
    """A type of argparse: a number, not infinite and not NaN."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}, expected a finite number")
    return value


@contextmanager
def importing() -> Iterator[None]:
    """For a command's imports of torch and what stands on it: half a million objects, all of which stay.

    Looking for garbage among them, again and again while they grow, is a quarter of the time, and in the middle of the
    work a third of a second. So they are left out until the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # else extension modules complain of leaks


def say_error(name: str, message: str) -> None:
    """One style for all commands, on standard error."""
    print(f"{name}: error: {message}", file=sys.stderr)


def run_command(name: str, body: Callable[[], int], expected: tuple[type[Exception], ...] = ()) -> int:
    """Exit status of `body`. What a user can cause becomes a sentence and a status instead of a traceback.

    Args:
        name: of the command, for messages.
        expected: errors beside ValueError, OSError and OutsideError whose message says what to do.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name need not be text, and a terminal need not know all letters
        with suppress(AttributeError, ValueError):  # the stand-ins of a test or of a notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    told: tuple[type[Exception], ...] = (ValueError, OSError, OutsideError, *expected)
    try:
        status = body()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
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
    """The message of an error; what the system says of a file begins with the file's name."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def tell(text: str) -> None:
    """Print for whoever still reads: work that goes on does not depend on it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        stop_printing()


def stop_printing() -> None:
    """Send standard output nowhere: its reader is gone, and Python would complain again at its end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
