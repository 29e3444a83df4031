"""`python -m train`, alone or under `accelerate launch`."""

import os

# Before torch is imported. Its threads spin while they wait for each other at the end of every operation, for
# milliseconds by default: beside other threads on the same cores that took up to 26 times the CPU time of the work
# itself. Not to spin at all (OMP_WAIT_POLICY=passive) costs a ResNet-32 step on idle cores 40 % of its speed; a spin
# this short costs nothing there (2 cores, digits, images/s: 145 passive, 240 active, 235 so).
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import faulthandler
import logging
import sys

from shards.object_store import StoreError
from train.options import parse
from train.run import FAILED, train


def main() -> int:
    """Train as the command line says; see train/run.py for the exit statuses."""
    first_rank = os.environ.get("RANK", "0") == "0"  # the other ranks would say the same things again
    level = logging.INFO if first_rank else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    options = parse(sys.argv[1:])
    try:
        return train(options)
    except (ValueError, FileNotFoundError, FileExistsError, StoreError) as error:
        print(f"python -m train: error: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    faulthandler.enable()  # else a shard that is cut while it is mapped (SIGBUS) ends the run without a word
    sys.exit(main())
