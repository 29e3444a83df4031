"""The command `longtail`: one name for everything that `python -m train` and `python -m tools.*` do.

Only the module of the requested command is imported.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from longtail.version import VERSION
from shards.commandline import USAGE, importing, run_command, say_error

# name: module, function, description
COMMANDS = {
    "build": ("tools.build_shards", "main", "build shards from photographs in folders, archives or known data sets"),
    "verify": ("tools.verify_shards", "main", "check every byte of shard sets"),
    "inspect": (
        "tools.inspect_shards",
        "main",
        "summarise a shard set: counts, sizes, a contact sheet, near-duplicates",
    ),
    "train": ("train.__main__", "main", "train a classifier"),
    "evaluate": ("tools.evaluate", "main", "measure the accuracy of checkpoints on a shard set, by class size"),
    "predict": ("tools.predict", "main", "classify image files"),
    "compare": ("tools.compare_runs", "main", "tabulate finished runs, mean and spread over seeds"),
    "report": ("tools.report", "main", "write an HTML page for one run or several"),
    "export": ("tools.export", "main", "export a trained network to timm, ONNX or the Hugging Face Hub"),
    "sweep": ("tools.sweep", "main", "run rows of published tables and compare with the published numbers"),
    "bench": ("tools.bench", "main", "measure the speed of this machine"),
    "methods": ("tools.catalog", "methods", "list the training methods, one line and paper each"),
    "presets": ("tools.catalog", "presets", "list the presets: augmentation, evaluation crop, normalisation"),
    "recipes": ("tools.catalog", "recipes", "list the included recipes: settings of published runs"),
}

# The modules of these commands import torch, which takes seconds.
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
        say_error("longtail", f"{name!r} is not a command; {hint}")
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
    """`--processes N` starts Accelerate's launcher with N processes; everything else is `python -m train`."""
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
    """The value of `--processes`, None if it is not a number, and the other arguments."""
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
            "Train image classifiers on long-tailed data: few classes with many images, many classes with few.",
            "",
            *lines,
            "",
            "longtail COMMAND --help lists the options. First steps with photographs in folders:",
            "",
            "  longtail build imagefolder --images photos --split-dir train --holdout 0.1 --out data/mine/train",
            "  longtail train --data.train data/mine/train --data.validation data/mine/train-holdout --method.loss bs",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
