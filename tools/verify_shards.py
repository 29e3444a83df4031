"""Check every byte of shard sets: python -m tools.verify_shards DIR …; the exit code is 1 if any is damaged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.verify import verify_shards


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every fault, then a verdict, for each folder. Returns 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tools.verify_shards", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a shard set")
    damaged = False
    for folder in parser.parse_args(arguments).folders:
        faults = 0
        for fault in verify_shards(folder):
            print(f"fault: {fault}", flush=True)
            faults += 1
        print(f"{folder}: {f'{faults} faults' if faults else 'whole, all checksums and counts agree'}")
        damaged |= faults > 0
    return int(damaged)


if __name__ == "__main__":
    sys.exit(main())
