"""Check every byte of shard sets: python -m tools.verify_shards DIR|URL …; the exit code is 1 if any is damaged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shards.object_store import StoreError, set_location
from shards.verify import verify_shards


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every fault, then a verdict, for each set. Returns 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tools.verify_shards", description=__doc__)
    parser.add_argument("sets", type=set_location, nargs="+", metavar="DIR|URL", help="folder or URL of a shard set")
    damaged = False
    for location in parser.parse_args(arguments).sets:
        faults = 0
        try:
            for fault in verify_shards(location):
                print(f"fault: {fault}", flush=True)
                faults += 1
        except (StoreError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            damaged = True
            continue
        print(f"{location}: {f'{faults} faults' if faults else 'whole, all checksums and counts agree'}")
        damaged |= faults > 0
    return int(damaged)


if __name__ == "__main__":
    sys.exit(main())
