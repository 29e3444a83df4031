"""One page for one run or several: python -m tools.report RUN_DIR [RUN_DIR …] [--out report.html]

The page is a single HTML file that needs no network. Each run writes its own at its end; this makes it again, and puts
several runs side by side.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.evaluation.page.render import PAGE, write_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__.splitlines()[0])
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, help=f"the file (default: {PAGE} in the run's folder, or here for several)")
    options = parser.parse_args(arguments)
    default = options.run_dirs[0] / PAGE if len(options.run_dirs) == 1 else Path(PAGE)
    out: Path = options.out or default
    try:
        write_page(options.run_dirs, out)
    except OSError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 1
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
