"""Check every byte of shard sets: python -m tools.verify_shards DIR|URL …; the exit code is 1 if any is damaged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shards.commandline import FAILED, Parser, described, run_command, say_error
from shards.files import OutsideError
from shards.object_store import set_location
from shards.verify import verify_shards

_NAME = "verify_shards"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every fault, then a verdict, for each set. Returns 1 if there is a fault."""
    parser = Parser(prog=f"python -m tools.{_NAME}", description=__doc__)
    parser.add_argument("sets", type=set_location, nargs="+", metavar="DIR|URL", help="folder or URL of a shard set")
    locations = parser.parse_args(arguments).sets
    return run_command(_NAME, lambda: _verify(locations))


def _verify(locations: Sequence[Path | str]) -> int:
    damaged = [_is_damaged(location) for location in locations]  # all sets, even after a damaged one
    return FAILED if any(damaged) else 0


def _is_damaged(location: Path | str) -> bool:
    """Print what is wrong with a set. An unreadable set counts as damaged; the next one is still checked."""
    faults = 0
    try:
        for fault in verify_shards(location):
            print(f"fault: {fault}", flush=True)
            faults += 1
    except BrokenPipeError:
        raise
    except (OutsideError, ValueError, OSError) as error:
        say_error(_NAME, described(error))
        return True
    print(f"{location}: {f'{faults} faults' if faults else 'intact, all checksums and counts agree'}", flush=True)
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
