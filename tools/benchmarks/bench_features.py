"""What cached features save: python -m tools.benchmarks.bench_features [--steps 24] [--out FILE] -- OPTIONS

The same run of `python -m train OPTIONS` twice, with method.cached_features false and true, each in a process of its
own: the steps of training alone, neither features nor evaluations. Images per second of wall time, and of the time that
all cores of the process worked, which holds on a machine that is busy with others too.

    python -m tools.benchmarks.bench_features -- --recipe recipes/digits-lt/finetune-lite0.yaml
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.markdown import markdown
from train.checkpoints.pretrained import find_pretrained
from train.datasets import open_datasets
from train.evaluation.run_report import hardware, versions
from train.launch import end, make_accelerator
from train.options import parse
from train.run import Run
from train.run_folder import RunFolder, write_json

WAYS = {"pictures through the network": "false", "cached features": "true"}


def measure(training: Sequence[str], cached: str, steps: int) -> dict[str, float]:
    """Images per second of wall time and of working time, after a first step."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["--max_steps", str(steps + 1), "--run_dir", folder, "--method.cached_features", cached]
        options = parse([*training, *own])
        accelerator = make_accelerator(options.run)
        pretrained, datasets = find_pretrained(options.model), open_datasets(options.data)
        run = Run(options, RunFolder(Path(folder), keep_checkpoints=1), datasets, accelerator, pretrained)
        run.progress.start(run.trainer.total_steps, 0)
        images, started = -1, (0.0, 0.0)
        with run.make_loader() as loader:
            for loaded in loader:
                run.trainer.train_step(loaded)
                if images < 0:
                    images, started = 0, (time.perf_counter(), time.process_time())
                else:
                    images += loaded.whole.sizes["original"]
        wall, working = time.perf_counter() - started[0], time.process_time() - started[1]
        end(accelerator)
    return {"images_per_second": images / wall, "images_per_working_second": images / working}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both, print the table, write the numbers."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.bench_features", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("--steps", type=int, default=24, help="of each run, after a first (%(default)s)")
    parser.add_argument("--cached", choices=("false", "true"), help="measure one, in this process")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all numbers")
    parser.add_argument("training", nargs="+", help="options of python -m train, behind --")
    o = parser.parse_args(arguments)
    if o.cached is not None:
        print(json.dumps(measure(o.training, o.cached, o.steps)))
        return 0
    results: dict[str, dict[str, Any]] = {}
    for way, cached in WAYS.items():
        own = ["--steps", str(o.steps), "--cached", cached, "--", *o.training]
        command = [sys.executable, "-m", "tools.benchmarks.bench_features", *own]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    base, keys = results[next(iter(WAYS))], ("images_per_second", "images_per_working_second")
    rows = [
        [way, *(f"{r[k]:.0f}" for k in keys), *(f"{r[k] / base[k]:.1f}" for k in keys)] for way, r in results.items()
    ]
    print(markdown(["training on", "images/s", "per working second", "ratio", "ratio by working time"], rows))
    if o.out is not None:
        content = {"options": o.training, "steps": o.steps, "results": results}
        write_json(o.out, content | {"hardware": hardware(), "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
