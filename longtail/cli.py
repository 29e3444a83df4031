"""The command `longtail`: one name for everything that `python -m train` and `python -m tools.*` do.

Only the module of the command that was asked for is imported.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from longtail.version import VERSION
from shards.commandline import USAGE, importing, run_command, say_error

# name: module, function, what it does
COMMANDS = {
    "build": ("tools.build_shards", "main", "build shards from photographs in folders, archives or known data sets"),
    "verify": ("tools.verify_shards", "main", "check every byte of shard sets"),
    "inspect": (
        "tools.inspect_shards",
        "main",
        "what a shard set holds: counts, sizes, a sheet of samples, duplicates",
    ),
    "train": ("train.__main__", "main", "train a classifier"),
    "evaluate": ("tools.evaluate", "main", "accuracy of checkpoints on a shard set, by class size"),
    "predict": ("tools.predict", "main", "classes of image files"),
    "compare": ("tools.compare_runs", "main", "a table of finished runs, mean and spread over seeds"),
    "report": ("tools.report", "main", "a page to read in a browser, of one run or of several"),
    "export": ("tools.export", "main", "a trained network for other programs: timm, ONNX, the Hub"),
    "sweep": ("tools.sweep", "main", "run rows of published tables, measured beside published numbers"),
    "bench": ("tools.bench", "main", "how fast this machine is"),
    "methods": ("tools.catalog", "methods", "the training methods, one line and paper each"),
    "presets": ("tools.catalog", "presets", "how images are augmented, shown and normalised"),
    "recipes": ("tools.catalog", "recipes", "the settings of published runs that come along"),
}

# Their modules import torch, which takes seconds.
_PARSED_FIRST = ("evaluate", "predict", "export", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"longtail {VERSION}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {similar[0]}?" if similar else "longtail --help lists them"
        say_error("longtail", f"{name!r} is no command; {hint}")
        return USAGE
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch is imported, as in train/__main__.py
    if name == "train":
        return _train(rest)
    if name in _PARSED_FIRST:
        from tools import option_parsers

        getattr(option_parsers, f"{name}_parser")().parse_args(rest)  # --help or a wrong option ends here, at once
    module, function, _ = COMMANDS[name]

    def run() -> int:
        with importing():
            command = getattr(importlib.import_module(module), function)
        return command(rest)

    return run_command(name, run)


def _train(arguments: Sequence[str]) -> int:
    """`--processes N` becomes Accelerate's launcher with N of them; all else is `python -m train`."""
    from tools.launching import environment, train_command
    from train.__main__ import main as train

    processes, rest = _processes(arguments)
    if processes is None:
        return USAGE
    if processes > 1:
        command = [*train_command(processes), *rest]
        os.execve(command[0], command, environment())
    return train(rest, "longtail train")


def _processes(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number of `--processes`, None where it is none, and the other arguments."""
    count, rest, pending = "1", [], False
    for argument in arguments:
        if pending or argument.startswith("--processes="):
            count, pending = argument.removeprefix("--processes="), False
        elif argument == "--processes":
            count, pending = "", True
        else:
            rest.append(argument)
    if not count.isdecimal() or int(count) < 1:
        say_error("train", f"--processes is {count!r}, expected a whole number of at least 1")
        return None, rest
    return int(count), rest


def help_text() -> str:
    """The commands, one line each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: longtail COMMAND [OPTION …]",
            "",
            "Train image classifiers on long-tailed data: a few classes with many images, many with a few.",
            "",
            *lines,
            "",
            "longtail COMMAND --help has the options. First steps with photographs in folders:",
            "",
            "  longtail build imagefolder --images photos --split-dir train --holdout 0.1 --out data/mine/train",
            "  longtail train --data.train data/mine/train --data.validation data/mine/train-holdout --method.loss bs",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
