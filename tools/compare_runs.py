"""Compare finished runs: python -m tools.compare_runs RUN_DIR [RUN_DIR …] [--out comparison.md]

Runs of one recipe with different seeds become one row: mean ± standard deviation of the test accuracy.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from shards.commandline import Parser, home_path, run_command, tell
from tools.markdown import markdown
from train.evaluation.spread import mean_and_spread

GROUPS = ("all", "many", "medium", "few")
TITLE = "Test accuracy (%)"


def read_result(run_dir: Path) -> dict[str, Any]:
    """result.json of a run.

    Raises:
        FileNotFoundError: the run is not finished, or the folder does not exist.
        ValueError: the file is damaged, or the run had no test set.
    """
    path = run_dir / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; is the run finished? See {run_dir / 'status.json'}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    missing = [key for key in ("options", "group_rule", "data") if key not in dict(result)]
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}, so it is not the result of a run")
    if "test" not in result:
        raise ValueError(f"{path}: the run had no test set, so there are no test numbers to compare")
    return result


def read_results(run_dirs: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The results of the runs that have one; the others are reported on standard error.

    Raises:
        FileNotFoundError: no run has a result.
    """
    results = {}
    for run_dir in run_dirs:
        try:
            results[run_dir] = read_result(run_dir)
        except (OSError, ValueError) as error:
            print(f"compare_runs: left out: {error}", file=sys.stderr)
    if not results:
        raise FileNotFoundError(f"none of {len(run_dirs)} folders has the result of a run")
    return results


def checksum(result: dict[str, Any], role: str) -> str:
    """Checksum of a set's images by class name; earlier versions recorded the checksum of the files instead."""
    data = result["data"][role]
    return data.get("images_checksum", data["checksum"])


def row_name(run_dir: Path, result: dict[str, Any]) -> str:
    """Name of a run without its seed: the default run folder's name before "-seed"."""
    return run_dir.name.removesuffix(f"-seed{result['options']['seed']}")


def check_comparable(results: Sequence[dict[str, Any]]) -> None:
    """Refuse to compare numbers measured on different data or with different group rules."""
    for what, values in {
        "training sets": {checksum(r, "train") for r in results},
        "test sets": {checksum(r, "test") for r in results},
        "group rules": {r["group_rule"] for r in results},
    }.items():
        if len(values) > 1:
            raise ValueError(f"the runs have {len(values)} different {what}: {sorted(values)}; compare them separately")


def check_cost_is_comparable(results: dict[Path, dict[str, Any]]) -> None:
    """Refuse to compare the cost of runs on different hardware, or of runs that did not record it."""
    for run_dir, result in results.items():
        if "cost" not in result:
            raise ValueError(
                f"{run_dir}/result.json has no cost: an earlier version wrote it; run it again, or omit --cost"
            )
    machines = {f"{result['derived']['processes']} processes on {result['hardware']}" for result in results.values()}
    if len(machines) > 1:
        raise ValueError(f"the runs had {' and '.join(sorted(machines))}; compare costs only on the same hardware")


def table(results: dict[Path, dict[str, Any]], weights: str = "last", with_cost: bool = False) -> str:
    """Markdown: one row per recipe, columns All/Many/Medium/Few, mean ± standard deviation over seeds.

    with_cost: also the speed in trained images per second relative to the first recipe, and the peak memory in GB.
    """
    titles = ["run", "seeds", "epochs", "All", "Many", "Medium", "Few"]
    rows: dict[str, list[dict[str, Any]]] = {}
    for run_dir, result in results.items():
        rows.setdefault(row_name(run_dir, result), []).append(result)
    lines = []
    for name, members in rows.items():
        epochs = sorted({m["options"]["epochs"] for m in members})
        cells = [mean_and_spread([m["test"][weights][group] for m in members]) for group in GROUPS]
        lines.append([name, str(len(members)), ", ".join(map(str, epochs)), *cells])
    if with_cost:
        titles += ["speed", "memory (GB)"]
        speeds = [_mean_cost(members, "images_per_second") for members in rows.values()]
        for line, members, speed in zip(lines, rows.values(), speeds, strict=True):
            line += [f"{speed / speeds[0]:.2f}", f"{_mean_cost(members, 'peak_memory_gb'):.2f}"]
    return markdown(titles, lines)


def _mean_cost(members: Sequence[dict[str, Any]], key: str) -> float:
    return mean(member["cost"][key] for member in members)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it to --out if given."""
    parser = Parser(prog="python -m tools.compare_runs", description=__doc__.splitlines()[0])
    parser.add_argument("run_dirs", nargs="+", type=home_path, metavar="RUN_DIR")
    parser.add_argument(
        "--weights", choices=("last", "best"), default="last", help="use the final weights or those of the best epoch"
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="add training speed relative to the first run, and memory, as recorded by the runs",
    )
    parser.add_argument("--out", type=home_path, help="also write the table (Markdown) to this file")
    options = parser.parse_args(arguments)
    return run_command("compare_runs", lambda: _main(options))


def _main(options: Namespace) -> int:
    if options.out is not None:
        claim(options.out)
    results = read_results(options.run_dirs)
    check_comparable(list(results.values()))
    if options.cost:
        check_cost_is_comparable(results)
    first = next(iter(results.values()))
    title = f"{TITLE}, {options.weights} epoch; {first['group_rule']}."
    text = f"{title}\n\n{table(results, options.weights, options.cost)}"
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8", errors="backslashreplace")
    tell(text)
    return 0


def claim(out: Path) -> None:
    """Create the output file's folder, before anything is read.

    Raises:
        FileExistsError: the file exists and is not a table written by this command.
    """
    if out.is_dir() or (out.exists() and not out.read_bytes().startswith(TITLE.encode())):
        raise FileExistsError(f"{out}: exists and is not a comparison of runs; give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
