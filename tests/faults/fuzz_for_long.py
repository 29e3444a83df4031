"""One parser under atheris, guided by the paths it takes: `python -m tests.faults.fuzz_for_long TARGET`.

Needs `pip install -e .[fuzz]`. Ends with atheris' own message and status at the first fault. Most targets write each
input to a file: with TMPDIR in memory (`/dev/shm`) they read ten times as many.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

# Only what is imported in this block is watched; watching torch as well would take minutes.
with atheris.instrument_imports(include=["shards", "tools", "train.checkpoints.files"]):
    from tests.helpers.fuzz import TARGETS, check

_SECONDS_FOR_ONE_INPUT, _MEMORY_MB = 30, 4096  # more of either is a fault


def main() -> None:
    """Fuzz one target for a while."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz_for_long")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--inputs", type=int, default=1_000_000, help="stop after this many inputs")
    parser.add_argument("--seconds", type=int, default=86_400, help="stop after this many seconds")
    options = parser.parse_args()
    target = TARGETS[options.target]()
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryDirectory() as scratch:
        (Path(corpus) / "valid").write_bytes(target.valid)
        # The input of a fault is kept there: the default is the current folder.
        limits = [
            f"-artifact_prefix={tempfile.gettempdir()}/",
            f"-runs={options.inputs}",
            f"-timeout={_SECONDS_FOR_ONE_INPUT}",
            f"-rss_limit_mb={_MEMORY_MB}",
        ]
        command = [sys.argv[0], f"-max_total_time={options.seconds}", *limits, corpus]
        atheris.Setup(command, lambda data: check(target, data, Path(scratch)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
