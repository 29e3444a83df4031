"""The run folder: options, metrics, status and result, and exclusive access to it."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from shards.files import atomic_file, exclusive_lock
from train.checkpoints.files import CheckpointFolder


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON so that `path` is never incomplete."""
    data = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_file(path, path.with_name(path.name + ".partial")) as file:
        file.write(data.encode())


class MetricsFile:
    """metrics.jsonl: one JSON object per line, truncated on resume to the checkpoint's position."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def size_bytes(self) -> int:
        """Bytes written so far; part of a checkpoint."""
        return self.path.stat().st_size if self.path.exists() else 0

    def restore(self, size_bytes: int) -> None:
        """Remove the lines that a killed run wrote after its last checkpoint; they will be written again."""
        if self.size_bytes < size_bytes:
            raise ValueError(
                f"{self.path} has {self.size_bytes} bytes, fewer than the {size_bytes} recorded in the checkpoint; "
                "it was edited or removed: restore it, or start over in another --run_dir"
            )
        if self.path.exists():
            os.truncate(self.path, size_bytes)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All lines."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]


class RunFolder:
    """The paths of a run, and the files written once."""

    def __init__(self, path: Path, keep_checkpoints: int):
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep_checkpoints)
        self.metrics = MetricsFile(path / "metrics.jsonl")

    @property
    def result(self) -> Path:
        """The numbers of a finished run."""
        return self.path / "result.json"

    def check_free(self, resume: str) -> None:
        """Refuse to overwrite an earlier run by accident.

        Raises:
            FileExistsError: the folder holds a run, and resuming was not requested.
        """
        if resume == "never" and (self.path / "options.yaml").exists():
            raise FileExistsError(
                f"{self.path} already holds a run; continue it with --resume auto, or choose another --run_dir"
            )

    def lock(self) -> AbstractContextManager[None]:
        """Create the folder and lock it against other runs: a killed launcher may leave its processes running."""
        self.path.mkdir(parents=True, exist_ok=True)
        refusal = (
            f"{self.path}: another process is training in this folder (its pid is in status.json); wait for it or "
            "stop it"
        )
        return exclusive_lock(self.path, refusal)

    def prepare(self, options: Mapping[str, Any], derived: Mapping[str, Any]) -> None:
        """Create the folders and save the resolved and derived options."""
        self.checkpoints.prepare()
        text = yaml.safe_dump({**options, "derived": dict(derived)}, sort_keys=False)
        (self.path / "options.yaml").write_text(text, encoding="utf-8")

    def write_status(self, outcome: str, **details: Any) -> None:
        """status.json: running, finished, preempted, non-finite or failed, and where."""
        write_json(self.path / "status.json", {"outcome": outcome, **details})
