"""Run rows of published tables: python -m tools.sweep --tables 2 --seeds 0 1 2

It prints the results next to the published numbers. Each run is a separate `python -m train`. Finished runs are never
repeated and interrupted ones continue, so after an interruption run the same command again. Rows that need the same run
share it.
"""

import fnmatch
import json
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from shards.commandline import Parser, home_path, run_command, tell, whole_number
from tools.launching import environment, train_command
from tools.markdown import markdown
from tools.paper_tables import NUMBERS, Row, Table, as_arguments, read_tables
from train.evaluation.spread import mean_and_spread
from train.run_folder import write_json

PREEMPTED = 75  # exit status of a run that was told to stop and wrote a checkpoint, see train/run.py


@dataclass(frozen=True)
class Sweep:
    """The sweep's output folder and common options.

    Args:
        out: the folder for the run folders.
        extra: options for every run, in addition to those of its row.
        processes: processes per run; more than 1 through `accelerate launch`.
    """

    out: Path
    extra: dict[str, str]
    processes: int

    def claim(self) -> None:
        """Claim the folder for this sweep, so that it never mixes runs with different options.

        Raises:
            ValueError: the folder holds runs with other options.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        settings = self.out / "settings.json"
        found = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else self.extra
        if found != self.extra:
            raise ValueError(f"{self.out} holds runs with --set {found}, found --set {self.extra}; give another --out")
        write_json(settings, self.extra)

    def run_dir(self, row: Row, seed: int) -> Path:
        """Folder of a row's run."""
        return self.out / f"{row.run_name}-seed{seed}"

    def finished(self, row: Row, seed: int) -> bool:
        """Whether a row's run is finished."""
        return (self.run_dir(row, seed) / "result.json").is_file()

    def command(self, row: Row, seed: int) -> list[str]:
        """The command of a row's run; its first stage must be finished before it can run."""
        options: dict[str, Any] = {"seed": seed, "run_dir": self.run_dir(row, seed), "resume": "auto"}
        if row.first_stage is not None:
            folder = self.run_dir(first_stage(row), seed) / "checkpoints"
            from train.checkpoints.files import CheckpointFolder  # imports torch, which --help should not wait for

            found = CheckpointFolder(folder, keep=1).positions()
            options["model.init_from"] = found[-1][1] if found else folder / "(the last of its first stage)"
        return [*train_command(self.processes), *row.arguments(), *as_arguments(self.extra), *as_arguments(options)]

    def run(self, row: Row, seed: int) -> int:
        """Finish a row's run; returns its exit status, 0 if there was nothing to do, and always PREEMPTED after a
        stop signal.
        """
        if self.finished(row, seed):
            return 0
        if row.first_stage is not None:
            status = self.run(first_stage(row), seed)
            if status:
                return status
        return _wait_for(self.command(row, seed))


def first_stage(row: Row) -> Row:
    """The run that a row starts from: on the same data and network, with the recipe's own method."""
    assert row.first_stage is not None, "only called for rows that have one"
    shared = {name: value for name, value in row.overrides.items() if name.startswith(("data.", "model."))}
    return replace(row, recipe=row.first_stage, overrides=shared, first_stage=None)


def _wait_for(command: Sequence[str]) -> int:
    """Exit status of a command. A stop signal is forwarded, so the run writes a checkpoint, and gives PREEMPTED.

    The command's own status is not enough: a launcher of several processes replaces it, and a run that is still
    importing has no handler yet and is killed by the signal. A sweep that counted this as a failure would start the
    next row.
    """
    # Its own process group: otherwise Ctrl-C reaches it twice, and a second signal stops a run without a checkpoint.
    process = subprocess.Popen(command, process_group=0, env=environment())
    asked_to_stop = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
        return PREEMPTED if asked_to_stop else status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def results(sweep: Sweep, row: Row, seeds: Sequence[int], weights: str) -> list[dict[str, float | None]]:
    """Test numbers of a row's finished runs, or of each run's best expert, for which groups are not reported."""
    done = [sweep.run_dir(row, seed) / "result.json" for seed in seeds if sweep.finished(row, seed)]
    numbers = [json.loads(path.read_text(encoding="utf-8"))["test"][weights] for path in done]
    if not row.single_expert:
        return numbers
    alone = ([value for name, value in scores.items() if name.startswith("expert")] for scores in numbers)
    return [dict.fromkeys(NUMBERS) | {"all": max(values)} for values in alone]


def table_text(number: str, table: Table, rows: Sequence[Row], sweep: Sweep, seeds: Sequence[int], weights: str) -> str:
    """A table as Markdown, with separate columns for measured and published numbers."""
    lines = []
    for row in rows:
        measured = results(sweep, row, seeds, weights)
        cells = [mean_and_spread([m[key] for m in measured]) for key in NUMBERS]
        published = [mean_and_spread([row.published.get(key)]) for key in NUMBERS]
        lines.append([row.name, str(len(measured)), *cells, *published, row.source, row.note])
    titles = [f"{key.title()} ({whose})" for whose in ("measured", "published") for key in NUMBERS]
    settings = f"; every run with {', '.join(f'{k}={v}' for k, v in sweep.extra.items())}" if sweep.extra else ""
    text = (
        f"Table {number}: {table.title}\n\nMeasured here: test accuracy (%), {weights} epoch, mean ± standard deviation"
        f"{settings}. Published: {table.paper}, or as given in the source column.\n\n"
    )
    return text + markdown(("row", "runs", *titles, "source of the published", "note"), lines)


def choose(tables: dict[str, Table], numbers: Sequence[str], pattern: str) -> dict[str, list[Row]]:
    """Rows by table whose names match a shell pattern.

    Raises:
        ValueError: there is no such table, or no row matches.
    """
    unknown = [number for number in numbers if number not in tables]
    if unknown:
        raise ValueError(f"no table {', '.join(unknown)}; there are {', '.join(tables)}")
    chosen = {n: [row for row in tables[n].rows if fnmatch.fnmatchcase(row.name, pattern)] for n in numbers}
    if not any(chosen.values()):
        names = "; ".join(row.name for number in numbers for row in tables[number].rows)
        raise ValueError(f"no row matches {pattern!r}; there are {names}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all unfinished runs, then print the tables. Returns 1 if a run failed, 75 if one was interrupted."""
    options = _parser().parse_args(arguments)
    return run_command("sweep", lambda: _main(options))


def _main(options: Namespace) -> int:
    tables = read_tables()
    asked = list(tables) if options.tables in (None, ["all"]) else options.tables
    chosen = choose(tables, asked, options.rows)
    sweep = Sweep(options.out, dict(_pair(text) for text in options.set), options.processes)
    if options.dry_run:
        print("\n".join(plan(sweep, [row for rows in chosen.values() for row in rows], options.seeds)))
        return 0
    sweep.claim()
    failed: list[str] = []
    if not options.print_only:
        for seed in options.seeds:
            for row in (row for rows in chosen.values() for row in rows):
                status = sweep.run(row, seed)
                if status == PREEMPTED:
                    print("sweep: interrupted; run the same command again to continue", file=sys.stderr)
                    return PREEMPTED
                if status:
                    failed.append(f"{sweep.run_dir(row, seed)} (exit status {status})")
    shown = ((number, rows) for number, rows in chosen.items() if rows)
    text = "\n".join(table_text(n, tables[n], rows, sweep, options.seeds, options.weights) for n, rows in shown)
    (options.out / "tables.md").write_text(text, encoding="utf-8")
    tell(text)
    for run in failed:
        print(f"sweep: failed: {run}", file=sys.stderr)
    return 1 if failed else 0


def plan(sweep: Sweep, rows: Sequence[Row], seeds: Sequence[int]) -> list[str]:
    """The commands of all unfinished runs, each once, first stages before the runs that start from them."""
    commands: list[str] = []
    for seed in seeds:
        for row in rows:
            for stage in (row,) if row.first_stage is None else (first_stage(row), row):
                command = shlex.join(map(str, sweep.command(stage, seed)))
                if not sweep.finished(stage, seed) and command not in commands:
                    commands.append(command)
    return commands


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected NAME=VALUE, for example --set epochs=20")
    return name, value


def _parser() -> Parser:
    parser = Parser(prog="python -m tools.sweep", description=__doc__)
    add = parser.add_argument
    add("--tables", nargs="+", metavar="NUMBER", help="tables of recipes/tables.yaml, or all (default)")
    add("--rows", default="*", metavar="PATTERN", help="rows with matching names, for example 'BS*' (default: all)")
    add("--seeds", type=whole_number(0), nargs="+", default=[0], help="one run per row and seed (default: 0)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="options for every run, for example epochs=20")
    add(
        "--out",
        type=home_path,
        default=Path("runs/sweep"),
        metavar="DIR",
        help="folder for the runs (default: %(default)s)",
    )
    add("--processes", type=whole_number(1), default=1, help="processes per run, one per GPU (default: 1)")
    add("--weights", choices=("last", "best"), default="last", help="show the numbers of the last or the best epoch")
    add("--dry-run", action="store_true", help="run nothing, print the commands of unfinished runs")
    add("--print-only", action="store_true", help="run nothing, print the tables of finished runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
