"""`python -m train`, alone or under `accelerate launch`; `longtail train` is the same."""

import os

# Must be set before torch is imported. Its threads spin while they wait for each other after every operation, for
# milliseconds by default: next to other threads on the same cores this took up to 26 times the CPU time of the work
# itself. Not spinning at all (OMP_WAIT_POLICY=passive) costs a ResNet-32 step on idle cores 40 % of its speed; a spin
# this short costs nothing there (2 cores, digits, images/s: 145 passive, 240 active, 235 with this setting).
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import faulthandler
import logging
import sys
from collections.abc import Sequence

from shards.commandline import USAGE, importing, run_command, say_error
from train import early, help_text
from train.option_forms import RENAMED, STILL_TAKEN
from train.startup import StartClock


def main(arguments: Sequence[str] | None = None, program: str = "python -m train") -> int:
    """Train with the options on the command line; see train/run.py for the exit statuses."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        arguments = early.normalised(arguments)
        if "--help" in arguments or "-h" in arguments:
            print(help_text.text(program, arguments))
            return 0
        early.check(arguments, {**RENAMED, **STILL_TAKEN})
    except (ValueError, FileNotFoundError) as error:
        say_error("train", str(error))
        return USAGE
    return _train(arguments)


def _train(arguments: Sequence[str]) -> int:
    clock = StartClock(from_process_start=True)
    clock.end_of("python")
    # Imported here: they take seconds, which a mistake in the options should not cost.
    with importing():
        import torch

        from train.options import parse
        from train.run import train

    clock.end_of("imports")
    first_rank = os.environ.get("RANK", "0") == "0"  # the other ranks would repeat the same lines
    level = logging.INFO if first_rank else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")

    def run() -> int:
        options = parse(arguments)
        clock.end_of("options")
        return train(options, clock)

    return run_command("train", run, (torch.OutOfMemoryError,))


if __name__ == "__main__":
    faulthandler.enable()  # otherwise a shard truncated while mapped (SIGBUS) kills the run without a message
    sys.exit(main())
