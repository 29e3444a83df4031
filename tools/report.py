"""Write one page for one run or several: python -m tools.report RUN_DIR [RUN_DIR …] [--out report.html]

The page is a single HTML file that works offline. Each run writes its own page at the end; this command writes it
again, or compares several runs.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from shards.commandline import run_command, tell
from tools.option_parsers import report_parser
from train.evaluation.page.render import PAGE, write_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and print its path."""
    options = report_parser().parse_args(arguments)
    return run_command("report", lambda: _main(options))


def _main(options: Namespace) -> int:
    default = options.run_dirs[0] / PAGE if len(options.run_dirs) == 1 else Path(PAGE)
    out: Path = options.out or default
    write_page(options.run_dirs, out)
    tell(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
