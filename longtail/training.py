"""`longtail.train`: a run from Python."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.execution import FINISHED, NON_FINITE
from train.options import Options
from train.run import train as run


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: result.json, metrics.jsonl, tables, pictures and checkpoints.
        result: the content of result.json.
    """

    folder: Path
    result: dict[str, Any]

    @property
    def accuracy(self) -> dict[str, float | None]:
        """Test accuracy in percent after the last epoch: "all", "many", "medium", "few", "balanced"."""
        numbers = self.result["test"]["last"]
        return {name: numbers.get(name) for name in ("all", "many", "medium", "few", "balanced")}

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.1f}" for name, value in self.accuracy.items() if value is not None)
        return f"FinishedRun({str(self.folder)!r}: {numbers})"


def train(options: Options) -> FinishedRun:
    """Train, evaluate and write the run folder, as `longtail train` does, in the current process only.

    Ctrl-C writes a checkpoint and raises KeyboardInterrupt; call again with `resume="auto"` to continue.

    Args:
        options: made by `Options.of`.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: options, data and checkpoint do not match,
            or the folder already holds a run.
        FloatingPointError: the loss became infinite or NaN; status.json records where.
        KeyboardInterrupt: a stop signal came; the checkpoint is written.
    """
    folder = options.run.run_dir
    assert folder is not None, "Options.of fills it"
    status = run(options)
    if status == NON_FINITE:
        raise FloatingPointError(f"the loss is not finite; {folder / 'status.json'} records where")
    if status != FINISHED:
        raise KeyboardInterrupt(f"stopped; the checkpoint is in {folder}; continue with resume='auto'")
    result = folder / "result.json"
    return FinishedRun(folder, json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {})
